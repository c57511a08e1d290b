"""Draws trainings: the curves of metrics.jsonl, and the latest sheet of samples.

Metrics by noise level are named NAME@LOG_SNR there, in nats: loss@-4 is the mean loss of the examples near a log-SNR of -4.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]  # steps and values, [records] each

INK, FAINT, ALARM = "#2b2b33", "#d9d9de", "#c8452f"
RUNS = ("#30507a", "#c8742f", "#4c8c6b", "#8b5a9e", "#b23a5a", "#7a7a2e", "#3a9aa8", "#6b6b76")
PLAIN = {  # panels with one curve for each run: name in metrics.jsonl to title and divisor
    "gradient_norm": ("gradient norm", 1.0),
    "learning_rate": ("learning rate", 1.0),
    "images_per_second": ("images a second", 1.0),
    "peak_memory_bytes": ("peak memory, GB", 1e9),
}
LEVELLED = {"loss": "loss by noise level", "bits": "bits/dim per nat"}
COLUMNS = 4
LOGARITHMIC = ("loss", "bits", "gradient_norm")


@dataclass(frozen=True)
class History:
    """The records in a run's metrics.jsonl, and its latest sheet of samples."""

    name: str
    curves: Mapping[str, Curve]
    sheet: Path | None

    @classmethod
    def read(cls, run: str | Path) -> "History":
        """Reads a run folder; the last line may be incomplete while the run is training.

        Raises:
            ValueError: not a run folder, or no record in metrics.jsonl yet.
        """
        path = Path(run) / "metrics.jsonl"
        if not path.is_file():
            raise ValueError(f"{run} has no metrics.jsonl, so there is nothing to draw; name a run folder (sfumato train … --out {run}).")
        records = []
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append({k: v for k, v in record.items() if isinstance(v, int | float)})
        if not records:
            raise ValueError(f"{path} has no record yet; train longer, or log more often (training.log_every).")
        curves = {}
        for name in dict.fromkeys(name for record in records for name in record):
            having = [record for record in records if name in record]
            curves[name] = np.array([record["step"] for record in having]), np.array([record[name] for record in having], dtype=float)
        sheets = sorted((Path(run) / "samples").glob("[0-9]*.png"))
        return cls(str(run), curves, sheets[-1] if sheets else None)

    def levels(self, name: str) -> dict[int, Curve]:
        """The curves of NAME@LOG_SNR, by log-SNR in nats, ascending."""
        found = {key.partition("@")[2]: curve for key, curve in self.curves.items() if key.startswith(f"{name}@")}
        return dict(sorted((int(level), curve) for level, curve in found.items()))

    def summary(self) -> str:
        """Its length in steps and time."""
        step, seconds = int(self.curves["step"][1][-1]), self.curves["seconds"][1][-1] if "seconds" in self.curves else None
        return f"{step:,} steps" + ("" if seconds is None else f" in {_duration(seconds)}")


def draw(runs: Sequence[str | Path]) -> Image.Image:
    """One picture of one run, or of several for comparison.

    Panels, as far as there are records: the loss (running mean, with the values in a lighter colour and a red mark at rejected steps), the
    loss by noise level (over steps for one run; at the end, over log-SNR, for several), gradient norm, learning rate, speed, memory, the
    latest samples.

    Raises:
        ValueError: no runs, or a folder without records.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if not runs:
        raise ValueError("draw needs at least one run folder.")
    histories = [History.read(run) for run in runs]
    levelled = [name for name in LEVELLED if any(history.levels(name) for history in histories)]
    plain = [name for name in PLAIN if any(name in history.curves for history in histories)]
    sheets = [history for history in histories if history.sheet is not None]
    rows = math.ceil((1 + len(levelled) + len(plain) + len(sheets)) / COLUMNS)
    style: dict[Any, Any] = {
        "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.edgecolor": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True, "grid.color": FAINT,
        "grid.linewidth": 0.6, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "lines.linewidth": 1.6,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(4.1 * COLUMNS, 0.6 + 3.1 * rows), dpi=110, layout="constrained")
        panels = iter(figure.subplots(rows, COLUMNS, squeeze=False).flatten())
        _loss(next(panels), histories)
        for name in levelled:
            (_levels_over_steps if len(histories) == 1 else _levels_at_the_end)(next(panels), histories, name)
        for name in plain:
            _plain(next(panels), histories, name)
        for history in sheets:
            _samples(next(panels), history, alone=len(histories) == 1)
        for empty in panels:
            empty.set_axis_off()
        _title(figure, histories)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
    return Image.open(buffer).convert("RGB")


def _title(figure: "Figure", histories: Sequence[History]) -> None:
    if len(histories) == 1:
        figure.suptitle(f"{histories[0].name}: {histories[0].summary()}", x=0.01, ha="left", fontsize=12, fontweight="bold")
        return
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_colour(i), linewidth=2.5) for i in range(len(histories))]
    names = [f"{history.name}: {history.summary()}" for history in histories]
    figure.legend(lines, names, loc="outside upper left", ncols=min(3, len(names)), frameon=False, fontsize=10)


def _loss(axes: "Axes", histories: Sequence[History]) -> None:
    axes.set_title("loss")
    for i, history in enumerate(histories):
        if "loss" in history.curves:
            _curve(axes, history.curves["loss"], _colour(i))
        steps, rejected = history.curves.get("rejected", (np.empty(0), np.empty(0)))
        if rejected.any():
            places = steps[rejected > 0]
            axes.plot(places, np.full(len(places), 0.03), "|", color=ALARM, markersize=8, mew=2, transform=axes.get_xaxis_transform())
    _scale(axes, "loss")
    _over_steps(axes)


def _levels_over_steps(axes: "Axes", histories: Sequence[History], name: str) -> None:
    levels = histories[0].levels(name)
    axes.set_title(LEVELLED[name])
    for place, (level, curve) in enumerate(levels.items()):
        colour = _shade(place, len(levels))
        _curve(axes, curve, colour, is_faint=False)
        where = (1.0 - 0.085 * (len(levels) - 1 - place), 1.02)
        axes.text(
            *where, f"{level:+d}" if level else "0", color=colour, fontweight="bold", fontsize=8, ha="right", transform=axes.transAxes
        )
    axes.text(1.0 - 0.085 * len(levels), 1.02, "log-SNR", fontsize=8, ha="right", transform=axes.transAxes)
    _scale(axes, name)
    _over_steps(axes)


def _levels_at_the_end(axes: "Axes", histories: Sequence[History], name: str) -> None:
    axes.set_title(f"{LEVELLED[name]} at the end")
    for i, history in enumerate(histories):
        levels = history.levels(name)
        axes.plot(list(levels), [_running_mean(values)[-1] for _, values in levels.values()], "o-", color=_colour(i), markersize=4)
    _scale(axes, name)
    axes.set_xlabel("log-SNR in nats (noise left, data right)")


def _plain(axes: "Axes", histories: Sequence[History], name: str) -> None:
    title, unit = PLAIN[name]
    axes.set_title(title)
    for i, history in enumerate(histories):
        if name in history.curves:
            steps, values = history.curves[name]
            _curve(axes, (steps, values / unit), _colour(i), is_smoothed=name == "gradient_norm")
    _scale(axes, name)
    if name in ("images_per_second", "peak_memory_bytes"):
        axes.set_ylim(bottom=0, top=1.15 * axes.dataLim.ymax)
    _over_steps(axes)


def _samples(axes: "Axes", history: History, *, alone: bool) -> None:
    assert history.sheet is not None
    with Image.open(history.sheet) as image:
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    of = "" if alone else f"{history.name}: "
    axes.set_title(f"{of}samples after step {int(history.sheet.stem):,}")
    axes.set_axis_off()


def _curve(axes: "Axes", curve: Curve, colour: str, *, is_smoothed: bool = True, is_faint: bool = True) -> None:
    """A curve; many noisy values are drawn as their running mean, with the values in a lighter colour."""
    steps, values = curve
    smooth = _running_mean(values) if is_smoothed else values
    if is_smoothed and is_faint and len(values) > 20:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color=colour, marker="o" if len(values) == 1 else None, markersize=3)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Running mean over a thirtieth of the values on either side, of finite values only; few values are returned as they are."""
    half, ends, is_known = len(values) // 30, np.arange(len(values)), np.isfinite(values)
    low, high = np.maximum(0, ends - half), np.minimum(len(values), ends + half + 1)
    sums, counts = (np.concatenate([[0.0], np.cumsum(each)]) for each in (np.where(is_known, values, 0.0), is_known))
    total, count = sums[high] - sums[low], counts[high] - counts[low]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _scale(axes: "Axes", name: str) -> None:
    """Logarithmic for positive values that span a factor of three."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if line.get_transform() == axes.transData]
    values = np.concatenate([np.empty(0), *drawn])
    values = values[np.isfinite(values)]
    if name in LOGARITHMIC and len(values) and values.min() > 0 and values.max() > 3 * values.min():
        span = values.max() / values.min()
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if span < 10 else (1, 2, 5) if span < 100 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _over_steps(axes: "Axes") -> None:
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.set_xlabel("step", fontsize=8)


def _colour(run: int) -> str:
    return RUNS[run % len(RUNS)]


def _shade(place: int, count: int) -> str:
    """From dark for the noisiest level to light for the cleanest."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["plasma"](0.05 + 0.8 * place / max(1, count - 1)))


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
