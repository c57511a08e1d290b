"""A sweep: one model, its samplers, steps and scales of guidance measured on the same data, as a table and a picture."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sfumato.curves import FAINT, INK, RUNS
from sfumato.evaluation.chosen import note_sweep
from sfumato.evaluation.evaluate import Evaluation, model_of
from sfumato.evaluation.report import Report, read_report
from sfumato.evaluation.subject import Progress, forget
from sfumato.storage import aside, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAN, TABLE, PICTURE = "sweep.json", "table.md", "sweep.png"
QUALITY = ("fid", "fd", "mind", "kd", "kid", "sliced_wasserstein", "wasserstein", "mmd", "two_sample_accuracy")  # the first there is drawn
DIVERSITY = ("recall", "coverage", "clipped_recall")


@dataclass(frozen=True)
class Setting:
    """How samples are drawn; None for what the recipe says."""

    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As `Model.sample` takes them."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def file(self) -> str:
        """The name of its report."""
        parts = [self.sampler or "recipe", *([] if self.steps is None else [f"{self.steps}-steps"])]
        return "-".join([*parts, *([] if self.guidance is None else [f"guidance-{self.guidance:g}"])]) + ".json"


@dataclass(frozen=True)
class Sweep:
    """Settings with their reports."""

    rows: tuple[tuple[Setting, Report], ...]

    def figure(self, names: Sequence[str]) -> str | None:
        """The first figure that all reports have, of these without their features."""
        there = self.rows[0][1].metrics
        return next((full for name in names for full in there if full.partition("@")[0] == name), None)

    def table(self, name: str) -> str:
        """A figure by sampler (rows) and steps (columns), one table a scale of guidance, in Markdown, as in the DDIM paper."""
        steps = list(dict.fromkeys(setting.steps for setting, _ in self.rows))
        samplers = list(dict.fromkeys(setting.sampler for setting, _ in self.rows))
        parts = []
        for guidance in dict.fromkeys(setting.guidance for setting, _ in self.rows):
            found = {(setting.sampler, setting.steps): report for setting, report in self.rows if setting.guidance == guidance}
            lines = [] if guidance is None else [f"guidance {guidance:g}", ""]
            lines += [f"| {name}, steps | {' | '.join('recipe' if each is None else str(each) for each in steps)} |"]
            lines += ["| --- |" + " ---: |" * len(steps)]
            for sampler in samplers:
                cells = [_cell(found.get((sampler, each)), name) for each in steps]
                lines.append(f"| {sampler or 'recipe'} | {' | '.join(cells)} |")
            if found:
                made = {setting: report.manifest["samples"]["evaluations"] for setting, report in found.items()}
                most = [f"{max(v for (s, k), v in made.items() if k == each):g}" for each in steps]
                lines.append(f"| *evaluations a sample, at most* | {' | '.join(most)} |")
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def markdown(self) -> str:
        """All figures, one table each."""
        names = list(dict.fromkeys(name for _, report in self.rows for name in report.metrics))
        first = self.rows[0][1]
        figures = first.metrics
        lines = [
            f"{first.manifest['samples']['name']}, {first.manifest['samples']['count']} samples of seed "
            f"{first.manifest['samples']['seeds'][0]} a setting, against {first.manifest['data']['name']} "
            f"({first.manifest['data']['count']} examples). All settings are of the same noise: the best of them looks better than it "
            "is, and is to be measured again with another seed.",
        ]
        for name in names:
            floor, ceiling = (getattr(figures[name], key) for key in ("floor", "ceiling"))
            beside = [f"real data {floor:.4g}" if floor is not None else "", f"noise {ceiling:.4g}" if ceiling is not None else ""]
            said = f" ({', '.join(each for each in beside if each)})" if any(beside) else ""
            lines += ["", f"## {name}{said}", "", self.table(name)]
        return "\n".join(lines)

    def picture(self) -> Image.Image:
        """Quality against evaluations, and label accuracy against diversity where both are known."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        quality, accuracy, diversity = self.figure(QUALITY), self.figure(("label_accuracy",)), self.figure(DIVERSITY)
        if diversity is not None and accuracy is None:
            accuracy = self.figure(("precision",))
        is_two = accuracy is not None and diversity is not None
        with rc_context({"font.size": 10, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK}):
            figure = Figure(figsize=(11 if is_two else 5.8, 4.6), dpi=120, layout="constrained")
            panels = figure.subplots(1, 2 if is_two else 1, squeeze=False)[0]
            groups = _grouped(self.rows)
            if quality is not None:
                self._quality(panels[0], quality, groups)
            if is_two:
                self._trade(panels[1], str(diversity), str(accuracy))
            for panel in panels:
                panel.grid(color=FAINT, linewidth=0.6)
                panel.spines[["top", "right"]].set_visible(False)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", facecolor="white")
        return Image.open(buffer).convert("RGB")

    def _quality(self, axes: "Axes", name: str, groups: "Mapping[tuple[str | None, float | None], list[tuple[Setting, Report]]]") -> None:
        values = []
        for i, ((sampler, guidance), rows) in enumerate(groups.items()):
            points = sorted(
                (report.manifest["samples"]["evaluations"], report.metrics[name].value) for _, report in rows if name in report.metrics
            )
            label = (sampler or "the recipe's") + ("" if guidance is None else f", guidance {guidance:g}")
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                color=RUNS[i % len(RUNS)],
                label=label,
                markersize=4,
                linestyle=("-", "--", ":")[i // len(RUNS) % 3],
            )
            values += [value for _, value in points]
        floor = self.rows[0][1].metrics[name].floor
        if floor is not None and floor > 0:
            axes.axhline(floor, color=INK, linewidth=1, linestyle=":", label="real data (disjoint halves)")
            values.append(floor)
        axes.set_xscale("log")
        ticks = sorted({report.manifest["samples"]["evaluations"] for _, report in self.rows})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if len(ticks) > 6 else 0)
        axes.minorticks_off()
        if min(values) > 0 and max(values) > 8 * min(values):
            axes.set_yscale("log")
        axes.set_xlabel("evaluations of the network a sample")
        axes.set_ylabel(name)
        axes.set_title("quality against evaluations (lower is better)", loc="left", fontsize=10, fontweight="bold")
        axes.legend(frameon=False, fontsize=8)

    def _trade(self, axes: "Axes", diversity: str, accuracy: str) -> None:
        scales = list(dict.fromkeys(setting.guidance for setting, _ in self.rows))
        lines: dict[tuple[str | None, int | None], list[tuple[float, float]]] = {}
        for setting, report in self.rows:
            at = (report.metrics[diversity].value, report.metrics[accuracy].value)
            lines.setdefault((setting.sampler, setting.steps), []).append(at)
            colour = RUNS[scales.index(setting.guidance) % len(RUNS)]
            axes.plot(*at, "o", color=colour, markersize=5)
            axes.annotate(
                " ".join(str(part) for part in (setting.sampler, setting.steps) if part is not None),
                at, xytext=(4, 3), textcoords="offset points", fontsize=6,
            )  # fmt: skip
        for points in lines.values():
            axes.plot(*zip(*points, strict=True), color=FAINT, linewidth=1, zorder=0)
        for i, scale in enumerate(scales):
            axes.plot([], [], "o", color=RUNS[i % len(RUNS)], label="the recipe's guidance" if scale is None else f"guidance {scale:g}")
        axes.set_xlabel(diversity)
        axes.set_ylabel(accuracy)
        axes.set_title("accuracy against diversity (higher is better)", loc="left", fontsize=10, fontweight="bold")
        axes.legend(frameon=False, fontsize=8)


def _cell(report: Report | None, name: str) -> str:
    if report is None or name not in report.metrics:
        return "–"
    figure = report.metrics[name]
    return f"{figure.value:.4g}" + ("" if figure.error is None else f" ± {figure.error:.1g}")


def _grouped(rows: Sequence[tuple[Setting, Report]]) -> dict[tuple[str | None, float | None], list[tuple[Setting, Report]]]:
    groups: dict[tuple[str | None, float | None], list[tuple[Setting, Report]]] = {}
    for setting, report in rows:
        groups.setdefault((setting.sampler, setting.guidance), []).append((setting, report))
    return groups


def sweep(
    model: Any,
    data: Any,
    out: str | Path,
    *,
    samplers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    guidance: Sequence[float] | None = None,
    metrics: Sequence[str] | None = None,
    features: Any = None,
    count: int | None = None,
    seed: int = 0,
    labels: Any = None,
    ema: float | None = None,
    batch: int = 64,
    judge: Any = None,
    force: bool = False,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Sweep:
    """Measures a model under every combination of samplers, steps and scales of guidance, into a folder.

    The folder gets a report a setting, table.md, sweep.png and sweep.json. A sweep that was stopped goes on. That it was made is kept with
    the model, so that a later report says whether its setting was chosen on the same samples.

    Args:
        model: a `Model`, a run folder or `zoo:NAME`.
        data: as `evaluate` takes it, like metrics, features, count, seed, labels, ema, batch, judge, on_progress and on_message.
        out: the folder.
        samplers: names; the recipe's where not given, as for steps and guidance.
        steps: as above.
        guidance: as above.
        metrics: as above.
        features: as above.
        count: as above.
        seed: as above.
        labels: as above.
        ema: as above.
        batch: as above.
        judge: as above.
        force: whether a finished sweep that is there is made anew.
        on_progress: as above.
        on_message: as above.

    Raises:
        ValueError: as `evaluate`; a folder that holds something else; samples in the place of a model.
    """
    out, say = Path(out), on_message or (lambda text: None)
    run = model_of(model, ema)
    if run is None:
        raise ValueError(f"a sweep draws samples of a model, but {model} is none; name a run folder or zoo:NAME.")
    settings = [Setting(*each) for each in product(samplers or (None,), steps or (None,), guidance or (None,))]
    if len(settings) < 2:
        raise ValueError("a sweep needs several settings; give --sampler, --steps or --guidance more than one value.")
    conditions = {} if labels is None else {"labels": labels}
    for setting in settings:  # all are checked before any is drawn
        run.sampler.check(setting.options, run.conditions(range(64), options=setting.options, **conditions))

    def begin(setting: Setting, report: Path | None) -> Evaluation:
        return Evaluation.begin(
            run, data, metrics=metrics or _default(run), features=features, count=count, seed=seed, seeds=1, options=setting.options,
            conditions=conditions, ema=ema, batch=batch, judge=judge, out=report, force=True, on_progress=on_progress,
            like=first,
        )  # fmt: skip

    first: Evaluation | None = None
    first = begin(settings[0], None)
    plan = {**first.plan(), "settings": [setting.options for setting in settings]}
    engine = first.engine
    _check_folder(out, plan, force=force)
    engine.wait()
    if engine.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / PLAN, json.dumps({"plan": plan, "done": False}, indent=1, default=repr))
        note_sweep(run, first.reference, [run.sampler.settings(setting.options) for setting in settings], seed, first.subject.count)
    rows = []
    for number, setting in enumerate(settings, start=1):
        path = out / setting.file
        report = read_report(path) if path.is_file() else None
        if report is None:
            say(f"Setting {number} of {len(settings)}: {path.stem}.")
            work = begin(setting, path)
            report = work.report()
            if engine.is_main:
                report.save(path)
                if work.kept is not None:
                    forget(work.kept)
        engine.wait()
        rows.append((setting, report))
    made = Sweep(tuple(rows))
    if engine.is_main:
        write_text(out / TABLE, made.markdown())
        with aside(out / PICTURE) as partial:
            made.picture().save(partial, format="PNG")
        write_text(out / PLAN, json.dumps({"plan": plan, "done": True}, indent=1, default=repr))
    engine.wait()
    return made


def _default(model: Any) -> list[str] | None:
    """Quality, diversity and label accuracy of images; of all else what `evaluate` measures."""
    if len(model.spec.shape) != 3:
        return None
    return ["fd", "prdc", *(["accuracy"] if model.spec.classes else [])]


def _check_folder(out: Path, plan: Mapping[str, Any], *, force: bool) -> None:
    """Refuses a folder of something else, or of a sweep that is done; with `force` its reports are removed.

    Raises:
        ValueError: says what to do.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    record = None
    try:
        record = json.loads((out / PLAN).read_text(encoding="utf-8"))
        is_same = record["plan"] == json.loads(json.dumps(plan, default=repr))
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{out} holds something that is no sweep; name a new folder.") from None
    if is_same and not record.get("done"):
        return
    if not force:
        what = "this sweep, finished" if is_same else "a sweep of other settings, samples or data"
        raise ValueError(f"{out} holds {what}; name another folder, or add --force to make it anew.")
    for setting in record["plan"]["settings"]:
        (out / Setting(**setting).file).unlink(missing_ok=True)
