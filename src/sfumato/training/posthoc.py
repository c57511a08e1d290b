"""Weight averages of other widths, made after training from snapshots of the tracked averages (`training.snapshot_every`).

RUN/snapshots/00001000/   ema-*.safetensors, state.json, checksums.b2: as in a checkpoint; never deleted
"""

from pathlib import Path

import torch
from torch import Tensor

from sfumato import storage as checkpoint
from sfumato.recipe import load_recipe
from sfumato.storage import name_of
from sfumato.training.ema import coefficients, exponent
from sfumato.training.folder import only_writer

LARGEST_MISFIT = 0.1  # largest error of a combined profile, relative to its norm


def reconstruct_ema(run: str | Path, width: float) -> tuple[Path, float]:
    """Computes the average of another width from a run's snapshots, and adds it to the newest checkpoint for `sf.load(run, ema=width)`.

    Returns:
        The file, and the error of its profile relative to the profile's norm.

    Raises:
        ValueError: a width outside (0, 0.288) or one that is tracked, too few snapshots, or a run that is being trained.
        CheckpointError: no checkpoint, or a damaged snapshot.

    Reference: Karras et al. (2024), section 3, arXiv:2312.02696
    """
    run = Path(run)
    exponent(width)
    tracked = load_recipe(run / "recipe.yaml").training.ema
    files = {w: f"{name_of(w)}.safetensors" for w in tracked}
    if name_of(width) in map(name_of, tracked):
        raise ValueError(f"{run} already tracks the average of width {width:g}; load it with ema={width:g}, or choose another width.")

    def whole(path: Path) -> Path:
        for file in files.values():
            checkpoint.read_tensors(path / file)
        return path

    with only_writer(run):
        newest = checkpoint.load_newest_valid(run, whole)
        step = int(newest.name)
        ends = [number for number in checkpoint.steps_in(run / "snapshots") if number < step]
        if not ends:
            raise ValueError(f"{run} has no snapshots to compute an average from; train it with training.snapshot_every above 0.")
        folders = {number: run / "snapshots" / f"{number:08d}" for number in ends} | {step: newest}
        parts = [(w, number) for number in folders for w in tracked]
        shares, misfit = coefficients([w for w, _ in parts], [number for _, number in parts], width=width, step=step)
        if misfit > LARGEST_MISFIT:
            raise ValueError(
                f"{len(ends)} snapshots of width {', '.join(f'{w:g}' for w in tracked)} cannot approximate width {width:g} (profile error "
                f"{misfit:.0%}); choose a width between or near these, or train with more snapshots."
            )
        total: dict[str, Tensor] = {}
        for share, (w, number) in zip(shares.tolist(), parts, strict=True):
            for name, value in checkpoint.read_tensors(folders[number] / files[w]).items():
                if value.is_floating_point():
                    value = total.get(name, torch.zeros((), dtype=torch.float64)) + share * value.double()
                total[name] = value
        like = checkpoint.read_tensors(newest / files[tracked[0]])
        return checkpoint.add(newest, name_of(width), {name: value.to(like[name]) for name, value in total.items()}), misfit
