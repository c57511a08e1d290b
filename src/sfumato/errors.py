"""Errors of sfumato's own."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, cannot be read, or cannot be written."""
