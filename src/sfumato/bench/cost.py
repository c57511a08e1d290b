"""Measures how the cost of a plain U-Net grows with the batch, the resolution, the channels and the steps, and draws it."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sfumato.denoiser import Denoiser
from sfumato.kernels import choice
from sfumato.nets import UNet, UNetLayout
from sfumato.runtime import keep_memory
from sfumato.sampling import grid, sample
from sfumato.sampling.steps import DDIM
from sfumato.schedule import Cosine

AXES: Mapping[str, Sequence[int]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "pixels": (256, 576, 1024, 2304, 4096),
    "channels": (32, 64, 96, 128),
    "steps": (5, 10, 20, 40),
}
Curve = list[tuple[int, float]]  # the varied quantity, median seconds


def costs(*, threads: int | None = None, rounds: int = 5, axes: Mapping[str, Sequence[int]] = AXES) -> dict[str, Curve]:
    """Seconds of a forward pass (of sampling, for the steps), varying one thing at a time from a batch of 8 of 3×32×32 with 32 channels.

    Args:
        threads: torch's default if None.
        rounds: the result is their median.
        axes: what to vary, and its values.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    keep_memory()
    try:
        return {name: [(value, _seconds(name, value, rounds)) for value in values] for name, values in axes.items()}
    finally:
        torch.set_num_threads(before)


def slope(curve: Curve) -> float:
    """The power with which the cost grows, by least squares on logarithms: 1 is linear."""
    x, y = np.log(np.array(curve, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """One panel for each axis, both scales logarithmic, with a line of slope one for comparison."""
    from matplotlib.figure import Figure  # takes half a second, so not imported at the top

    figure = Figure(figsize=(3.2 * len(curves), 3.0), layout="constrained")
    for panel, (name, curve) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True):
        x, y = np.array(curve, dtype=float).T
        panel.loglog(x, 1e3 * y, "o-", label=f"measured: slope {slope(curve):.2f}")
        panel.loglog(x, 1e3 * y[-1] * x / x[-1], ":", color="grey", label="linear")
        panel.set_xlabel(name)
        panel.set_ylabel("ms")
        panel.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        panel.minorticks_off()
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130, format="png")


def _seconds(axis: str, value: int, rounds: int) -> float:
    varied = {"batch": 8, "pixels": 1024, "channels": 32, "steps": 0} | {axis: value}
    side, channels = math.isqrt(varied["pixels"]), varied["channels"]
    shape = (3, side, side)
    layout = UNetLayout(
        channels=(channels, 2 * channels, 2 * channels), attention=(False, False, False), middle=(False,), head_width=8, heads=1
    )
    net = UNet(shape, layout).float().requires_grad_(False).eval()
    choice.use(net, choice.is_faster())
    x = torch.randn(varied["batch"], *shape, dtype=torch.float32).to(memory_format=torch.channels_last)
    predict, log_snr = Denoiser(net), torch.zeros(len(x))
    levels = grid(Cosine(), max(2, varied["steps"]))
    call: Callable[[], object] = (lambda: sample(predict, x, levels, DDIM())) if varied["steps"] else (lambda: net(x, log_snr))
    taken = []
    with torch.inference_mode():
        call()
        for _ in range(rounds):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)
