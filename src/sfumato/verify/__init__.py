"""Checks against closed forms: the ledger of every equation, and the same checks for parts of your own."""

from sfumato.verify.ledger import Result, Row, rows, run
from sfumato.verify.parts import predictor, schedule
from sfumato.verify.parts_step import step

__all__ = ["Result", "Row", "predictor", "rows", "run", "schedule", "step"]
