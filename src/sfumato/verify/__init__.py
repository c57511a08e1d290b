"""Checks against closed forms: the ledger of every equation, and the same checks for parts of your own."""

from sfumato.verify.ledger import Result, Row, rows, run

__all__ = ["Result", "Row", "rows", "run"]
