"""A training as most tests want it: into a folder, with functions in the place of callbacks."""

from pathlib import Path
from typing import Any

import sfumato as sf


def train(recipe: Any, out: Path, *, resume: bool = False, **calls: Any) -> Path:
    """Trains a recipe into `out`, which it returns; `calls` are those of `sf.Callbacks`."""
    sf.train(recipe, out=out, resume=resume, callbacks=sf.Callbacks(**calls))
    return out
