"""`sf.evaluate`: figures of a model or of samples, held against data, with the manifest of what they depend on."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import metrics as figures_of
from sfumato.condition import Classes
from sfumato.data.source import Source
from sfumato.engine import Engine
from sfumato.evaluation import chosen
from sfumato.evaluation.features import features_for
from sfumato.evaluation.judge import Judge, judge_for
from sfumato.evaluation.measures import (
    DISTANCES,
    PAIRED,
    Estimate,
    Estimates,
    FeatureSet,
    check_metrics,
    default_metrics,
    name_of,
)
from sfumato.evaluation.reference import Reference, alike, fitted_reference, open_reference, training_rows
from sfumato.evaluation.report import Figure, Report
from sfumato.evaluation.subject import (
    PART,
    Drawn,
    Given,
    Progress,
    Subject,
    check_samples,
    constant_rows,
    forget,
    given_samples,
    noise_like,
    parts_in,
    rows_of,
)
from sfumato.likelihood.bound import standard_error
from sfumato.loading import load
from sfumato.metrics.features import Features
from sfumato.model import Model
from sfumato.noise import seeded
from sfumato.pictures import sheet
from sfumato.runtime import processor
from sfumato.storage import aside, folder_of

NOISE = 2000  # samples of noise that a ceiling is of, at most
BITS, BITS_BLOCK = 256, 32  # examples whose bits/dim are told, and how many have one generator, whatever the batch
SET_ASIDE = 1000  # training rows that stand in for held-out data where there are none
MEMORISED = 2000  # samples that are looked for in the training data, at most
NEAREST = 16  # pairs in the picture of nearest neighbours


@dataclass
class Collected:
    """What one seed's samples gave, of this process or of all."""

    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)  # features by name; none where sums suffice
    sums: dict[str, figures_of.GaussianSums] = field(default_factory=dict)
    memorised: list[np.ndarray] = field(default_factory=list)  # x0 of the samples that are looked for in the training data
    labels: list[np.ndarray] = field(default_factory=list)
    told: list[np.ndarray] = field(default_factory=list)  # classes as the judge reads them
    paired: dict[str, list[np.ndarray]] = field(default_factory=dict)
    probabilities: list[np.ndarray] = field(default_factory=list)
    low: Tensor | None = None  # least and greatest entry at each place, by which samples that are all alike are found
    high: Tensor | None = None
    constant: int = 0
    evaluations: int = 0
    count: int = 0

    def span(self, x: Tensor) -> None:
        """Takes in the extremes of some samples."""
        low, high = x.amin(0), x.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    @classmethod
    def joined(cls, several: "Sequence[Collected]") -> "Collected":
        """Those of all processes, in their order."""
        whole = cls()
        for each in several:
            for name, rows in each.rows.items():
                whole.rows.setdefault(name, []).extend(rows)
            for name, sums in each.sums.items():
                whole.sums.setdefault(name, figures_of.GaussianSums()).merge(sums)
            for name, values in each.paired.items():
                whole.paired.setdefault(name, []).extend(values)
            whole.memorised += each.memorised
            whole.labels += each.labels
            whole.told += each.told
            whole.probabilities += each.probabilities
            whole.constant += each.constant
            whole.evaluations += each.evaluations
            whole.count += each.count
            if each.low is not None and each.high is not None:
                whole.span(torch.stack([each.low, each.high]))
        return whole


def evaluate(
    samples: Any,
    data: Any = "held-out",
    *,
    metrics: Sequence[str] | None = None,
    features: Any = None,
    count: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    labels: Any = None,
    cond: Mapping[str, Any] | None = None,
    steps: int | None = None,
    sampler: Any = None,
    guidance: float | Mapping[str, float] | None = None,
    ema: float | None = None,
    batch: int = 64,
    judge: Any = None,
    resize: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    keep_samples: bool = False,
    on_progress: Progress | None = None,
) -> Report:
    """Measures a model, or samples, against data.

    Args:
        samples: a `Model`, a run folder or `zoo:NAME`, which is sampled; or samples: `Samples`, an .npz, a folder of images, arrays or
            tensors [n, …] (bytes are images, floats are x0 as they are), a pair of arrays and labels, a `Source`.
        data: a data set's name, its path, its options, "held-out" or "training" of the run; arrays or a `Source`.
        metrics: names (`sfumato evaluate --help` lists them); by the form of the data where not given.
        features: one or more names, or functions of x0 [n, *x] to [n, d]; by the form of the data where not given.
        count: how many samples; 1000 of a model (2000 points), all of samples that are given.
        seed: of the noise of a model's samples.
        seeds: how many independent seeds, from `seed` on. Figures are then means over them, and errors the standard errors of those means.
        labels: as `Model.sample` takes them, like cond, steps, sampler and guidance.
        cond: as above.
        steps: as above.
        sampler: as above.
        guidance: as above.
        ema: which average of the weights.
        batch: how many samples are drawn at a time; changes no figure.
        judge: for label accuracy: a name, or a function of x0 to class numbers; by the data where not given. Never the features' network.
        resize: whether samples and data of other sizes or channels are brought to the samples' size.
        out: report.json to write. Samples are kept beside it until it is written, so that the same call goes on after an interruption.
        force: whether a report that is there is written over.
        keep_samples: whether the drawn samples are kept after the report is written.
        on_progress: called with a stage, its parts done, and all of them.

    Raises:
        ValueError: what cannot be measured, in a sentence: too few samples for the rank of a covariance, samples that are not finite or all
            alike, other sizes than the data's, labels that are missing, unknown names.
    """
    work = Evaluation.begin(
        samples,
        data,
        metrics=metrics,
        features=features,
        count=count,
        seed=seed,
        seeds=seeds,
        options=_given(steps=steps, sampler=sampler, guidance=guidance),
        conditions=_given(labels=labels, cond=cond),
        ema=ema,
        batch=batch,
        judge=judge,
        resize=resize,
        out=None if out is None else Path(out),
        force=force,
        on_progress=on_progress,
    )
    report = work.report()
    if work.out is not None and work.engine.is_main:
        report.save(work.out)
        if not keep_samples and work.kept is not None:
            forget(work.kept)
    work.engine.wait()
    return report


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@dataclass
class Evaluation:
    """An evaluation with all its parts opened and checked, before anything is drawn."""

    subject: Subject
    model: Model | None
    reference: Reference
    metrics: list[str]
    features: list[Features]
    judge: Judge | None
    engine: Engine
    seeds: range
    out: Path | None
    notes: list[str]
    settings: dict[str, Any]
    on_progress: Progress
    sets: dict[str, FeatureSet] = field(default_factory=dict)  # features of the data

    @classmethod
    def begin(
        cls,
        samples: Any,
        data: Any,
        *,
        metrics: Sequence[str] | None,
        features: Any,
        count: int | None,
        seed: int,
        seeds: int,
        options: Mapping[str, Any],
        conditions: Mapping[str, Any],
        ema: float | None = None,
        batch: int = 64,
        judge: Any = None,
        resize: bool = False,
        out: Path | None = None,
        force: bool = False,
        on_progress: Progress | None = None,
        like: "Evaluation | None" = None,
    ) -> "Evaluation":
        """Opens and checks everything; the arguments are those of `evaluate`.

        `like` is an evaluation whose data, with their features, and judge are taken over.

        Raises:
            ValueError: as `evaluate`.
        """
        for name, number, least in (("count", count, 1), ("seed", seed, 0), ("seeds", seeds, 1), ("batch", batch, 1)):
            if number is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}.")
        if out is not None and out.suffix.lower() != ".json":
            raise ValueError(f"a report is a .json, got {out}; name a file that ends in .json.")
        if out is not None and out.exists() and not force:
            raise ValueError(f"{out} is there already; name another file, or add --force to write over it.")
        if metrics is not None:
            metrics = check_metrics(metrics)
        engine = Engine.begin()
        model = model_of(samples, ema)
        if model is None and (options or conditions or seeds > 1 or ema is not None):
            said = [*options, *conditions, *(["seeds"] if seeds > 1 else []), *(["ema"] if ema is not None else [])]
            raise ValueError(f"{said[0]} says how a model is sampled, but these are samples already; leave it out.")
        if model is not None:
            model.to(engine.device)
            count = count or (2000 if len(model.spec.shape) == 1 else 1000)
            subject: Subject = Drawn(model, count, options, conditions, batch=batch, ema=ema)
        else:
            subject = Given(given_samples(samples), count)
        reference = open_reference(data, model) if like is None else like.reference
        notes: list[str] = []
        settings: dict[str, Any] = {}
        if isinstance(subject, Given):
            reference, note = alike(subject, reference, resize)
            if note:
                settings["resized"] = note
                notes.append(note)
        elif subject.shape != reference.spec.shape:
            reference, note = fitted_reference(subject.shape, reference, resize)
            settings["resized"] = note
            notes.append(note)
        chosen_features = features_for(features, reference.spec)
        spec = reference.spec
        has_labels = _has_labels(subject) and bool(spec.classes or judge is not None)
        wide = chosen_features[0].dim or int(np.prod(spec.sizes))
        names = list(metrics) if metrics else default_metrics(spec, has_labels=has_labels, few=subject.count <= wide)
        found_judge = None
        if "accuracy" in names:
            if not _has_labels(subject):
                raise ValueError(f"label accuracy needs samples of known classes, and {subject.name} has no labels; leave accuracy out.")
            found_judge = like.judge if like is not None else judge_for(judge, model, reference, [each.name for each in chosen_features])
        if "bpd" in names and model is None:
            raise ValueError("bits/dim are of a model, but these are samples; leave bpd out of --metrics, or name the run.")
        if paired := [name for name in names if name in PAIRED]:
            if subject.count != len(reference):
                raise ValueError(
                    f"{paired[0]} holds sample i against row i of the data, but there are {subject.count} samples and "
                    f"{len(reference)} rows; give as many of each."
                )
            if len(spec.shape) != 3:
                raise ValueError(f"{paired[0]} is a figure of images, but the data are of shape {list(spec.shape)}; leave it out.")
        return cls(
            subject,
            model,
            reference,
            names,
            chosen_features,
            found_judge,
            engine,
            range(seed, seed + seeds),
            out,
            notes,
            settings,
            on_progress or (lambda stage, done, total: None),
            {} if like is None else like.sets,
        )

    @property
    def kept(self) -> Path | None:
        """Where samples lie while they are drawn: beside the report."""
        return None if self.out is None or not isinstance(self.subject, Drawn) else self.out.with_suffix(".samples")

    @property
    def distances(self) -> list[str]:
        """The metrics that hold features of samples against those of data."""
        return [name for name in self.metrics if name in DISTANCES]

    def plan(self) -> dict[str, Any]:
        """What is measured, of what, against what: the manifest but for what comes of the work itself."""
        return {
            "samples": {**self.subject.manifest(), "count": self.subject.count, "seeds": list(self.seeds)},
            "data": self.reference.manifest(),
            "features": {each.name: each.sha256 for each in self.features},
            "metrics": self.metrics,
        }

    def report(self) -> Report:
        """Draws, measures, and tells; the same report in every process."""
        self._measure_data()
        if self.kept is not None and isinstance(self.subject, Drawn):
            if self.engine.is_main:
                self.subject.begin_keeping(self.kept)
            self.engine.wait()
        collected = [self._collect(seed) for seed in self.seeds]
        bits = self._bits() if "bpd" in self.metrics else {}
        report = None
        if self.engine.is_main:
            by_seed = [self._figures(seed, each) for seed, each in zip(self.seeds, collected, strict=True)]
            figures = self._combined(by_seed)
            self._floors_and_ceilings(figures)
            figures |= bits
            report = Report(figures, self._manifest(collected), tuple(dict.fromkeys(self.notes)))
        return next(each for each in self.engine.all_of(report) if each is not None)

    def _measure_data(self) -> None:
        """Features of the data, and a refusal where there are too few samples for their rank."""
        if not self.distances:
            return
        for each in self.features:
            if each.name not in self.sets:
                show = lambda done, total, each=each: self.on_progress(f"data@{each.name}", done, total)  # noqa: E731
                rows = self.reference.features(each, self.engine, show)
                self.sets[each.name] = FeatureSet(rows, columns=self.reference.spec.columns)
            if "fd" in self.distances or "fd-infinity" in self.distances:
                self._check_rank(each)

    def _check_rank(self, features: Features) -> None:
        real = self.sets[features.name]
        if len(real) < 2:
            raise ValueError(f"a Fréchet distance needs at least two examples of data, got {len(real)}.")
        rank, dim = _rank(real.sums.covariance), real.sums.dim
        if rank < dim:
            why = f"{len(real)} examples" if len(real) <= dim else "some features are constant or follow from others"
            self.notes.append(f"{features.name}: the covariance of the data has rank {rank} of {dim} ({why}); it is taken as it is.")
        if self.subject.count <= rank:
            raise ValueError(
                f"{self.subject.count} samples are too few for a Fréchet distance in {features.name}: the covariance of the data has rank "
                f"{rank}, and that of so many samples has at most {self.subject.count - 1}; take a count of {rank + 1} or more, or "
                "--metrics mind, which is for few samples."
            )

    def _collect(self, seed: int) -> Collected:
        """Draws and measures the samples of a seed; this process's share of the parts, then those of all."""
        subject, engine, mine = self.subject, self.engine, Collected()
        total = parts_in(subject.count)
        parts = range(total)[engine.share(total)]
        needs_rows = any(name != "fd" for name in self.distances)
        stage = "samples" if len(self.seeds) == 1 else f"samples of seed {seed}"
        for done, number in enumerate(parts, start=1):
            rows = rows_of(number, subject.count)
            part = subject.part(rows, seed, self.kept)
            self._take(mine, part.x, part.labels, rows, needs_rows=needs_rows)
            mine.evaluations += part.evaluations
            self.on_progress(stage, done, len(parts))
        whole = Collected.joined(engine.all_of(mine))
        self._refuse_degenerate(whole)
        return whole

    def _take(self, into: Collected, x: Tensor, labels: np.ndarray | None, rows: range, *, needs_rows: bool) -> None:
        """Measures a part."""
        check_samples(x, self.subject.name)
        into.count += len(x)
        into.constant += constant_rows(x)
        into.span(x)
        if "memorisation" in self.metrics and rows.start < MEMORISED:
            into.memorised.append(x[: MEMORISED - rows.start].numpy())
        if self.distances:
            for each in self.features:
                found = np.asarray(each(x.numpy()))
                if needs_rows:
                    into.rows.setdefault(each.name, []).append(found.astype(np.float32))
                else:
                    into.sums.setdefault(each.name, figures_of.GaussianSums()).update(found)
        if labels is not None:
            into.labels.append(labels)
        if self.judge is not None:
            into.told.append(self.judge(x.numpy()))
        if "is" in self.metrics:
            into.probabilities.append(self._probabilities(x))
        if paired := [name for name in self.metrics if name in PAIRED]:
            truth = self.reference.source.batch(np.arange(rows.start, rows.stop)).x
            for name in paired:
                measure, options = getattr(figures_of, name), {} if name == "lpips" else {"data_range": 2.0}
                into.paired.setdefault(name, []).append(measure(x.numpy(), truth.numpy(), **options))

    def _probabilities(self, x: Tensor) -> np.ndarray:
        """Class probabilities of ImageNet, of features that have them."""
        for each in self.features:
            if (probabilities := getattr(each, "probabilities", None)) is not None:
                return np.asarray(probabilities(x.numpy()))
        names = ", ".join(each.name for each in self.features)
        raise ValueError(
            f"an inception score needs features with the classes of ImageNet, which {names} has not; leave is out of --metrics."
        )

    def _refuse_degenerate(self, whole: Collected) -> None:
        assert whole.low is not None
        assert whole.high is not None
        if whole.constant == whole.count:
            raise ValueError(
                f"{self.subject.name}: all {whole.count} samples are images of one constant value each; the model or the file is at fault."
            )
        if whole.count > 1 and bool((whole.low == whole.high).all()):
            raise ValueError(f"{self.subject.name}: all {whole.count} samples are one and the same; the model or the file is at fault.")
        if whole.constant:
            self.notes.append(f"{whole.constant} of {whole.count} samples are images of one constant value.")

    def _figures(self, seed: int, found: Collected) -> Estimates:
        """The figures of one seed's samples."""
        figures: Estimates = {}
        for each in self.features:
            if not self.distances:
                break
            rows = found.rows.get(each.name)
            mine = FeatureSet(np.concatenate(rows)) if rows else FeatureSet(None, found.sums[each.name])
            for name in self.distances:
                for measure, estimate in DISTANCES[name](mine, self.sets[each.name], seed).items():
                    figures[name_of(measure, each.name)] = replace(estimate, count=estimate.count or found.count)
        if self.judge is not None:
            figures |= self._accuracy(found, self.judge)
        for name, values in found.paired.items():
            value = np.concatenate(values)
            label = f"{name}@stlpips-alex" if name == "lpips" else name
            figures[label] = Estimate(float(value.mean()), _standard_error(value), len(value))
        if found.probabilities:
            score = figures_of.inception_score(np.concatenate(found.probabilities))
            figures[name_of("inception_score", self.features[0].name)] = Estimate(score.value, score.error, found.count)
        if "memorisation" in self.metrics:
            figures |= self._memorisation(seed, found)
        return figures

    def _accuracy(self, found: Collected, judge: Judge) -> Estimates:
        labels, told = np.concatenate(found.labels), np.concatenate(found.told)
        known = labels >= 0
        if not known.any():
            raise ValueError(f"label accuracy needs samples of known classes, but {self.subject.name} was drawn without labels.")
        right = (labels == told)[known]
        return {f"label_accuracy@{judge.name}": Estimate(float(right.mean()), _standard_error(right), int(known.sum()))}

    def _memorisation(self, seed: int, found: Collected) -> Estimates:
        """Whether samples lie nearer to the training data than held-out data do, and a picture of the nearest pairs."""
        source, held_out, what = training_rows(self.model, self.reference)
        rows = np.arange(len(source))
        if held_out is not None and len(held_out) >= 100:
            held, beside = x_of(held_out, np.arange(len(held_out))), f"{len(held_out)} held-out rows"
        else:
            order = np.random.default_rng(0).permutation(len(source))
            count = min(SET_ASIDE, len(source) // 10)
            if count < 100:
                raise ValueError(
                    f"memorisation compares samples with at least 100 held-out examples, but a tenth of {len(source)} rows of {what} are "
                    f"{count}; leave memorisation out of --metrics."
                )
            held, rows, beside = x_of(source, np.sort(order[:count])), np.sort(order[count:]), f"{count} of its rows that are set aside"
        self.settings["memorisation"] = {"training": what, "beside": beside, "samples": min(MEMORISED, found.count)}
        told = figures_of.memorisation(np.concatenate(found.memorised), x_of(source, rows), held, pairs=NEAREST)
        if seed == self.seeds[0]:
            self.notes.append(f"Memorisation, of {what}, beside {beside}: {told.sentence}")
            self._draw_nearest(told.pairs, source, rows, seed)
        count = sum(map(len, found.memorised))
        return {"memorised_share": Estimate(told.share, told.error, count), "copies": Estimate(told.copies, told.error, count)}

    def _draw_nearest(self, pairs: np.ndarray, training: Source, kept: np.ndarray, seed: int) -> None:
        """The nearest samples above their nearest training images, beside the report."""
        spec = self.reference.spec
        if self.out is None or len(spec.shape) != 3 or not spec.is_image:
            return
        tops, bottoms = [], []
        for sample, row in pairs[:NEAREST]:
            part = int(sample) // PART
            rows = rows_of(part, self.subject.count)
            tops.append(self.subject.part(rows, seed, self.kept).x[int(sample) - rows.start])
            bottoms.append(training.batch(kept[[int(row)]]).x[0])
        values = spec.codec.decode(torch.stack(tops + bottoms))
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with aside(self.out.with_suffix(".nearest.png")) as partial:
            sheet(values, columns=len(tops)).save(partial, format="PNG")

    def _combined(self, by_seed: Sequence[Estimates]) -> dict[str, Figure]:
        """Means over the seeds with their standard errors; of one seed, what it tells by itself."""
        if len(by_seed) == 1:
            return {name: Figure(each.value, _finite(each.error), each.count or 0) for name, each in by_seed[0].items()}
        figures = {}
        for name in by_seed[0]:
            values = np.array([each[name].value for each in by_seed])
            figures[name] = Figure(float(values.mean()), _standard_error(values), by_seed[0][name].count or 0)
        return figures

    def _floors_and_ceilings(self, figures: dict[str, Figure]) -> None:
        """The same figures of real data (disjoint halves) and of noise."""
        spec, count = self.reference.spec, self.subject.count
        for each in self.features if self.distances else ():
            real = self.sets[each.name]
            noise = FeatureSet(None)
            if all(size is not None for size in spec.shape):
                bounded = len(spec.shape) == 3
                noise = FeatureSet(np.asarray(each(noise_like(spec.sizes, min(count, NOISE), bounded=bounded).numpy()), dtype=np.float32))
            for name in self.distances:
                if name == "fd-infinity":
                    continue
                for key, samples, others in (("floor", *real.halves(count)), ("ceiling", noise, real)):
                    if samples.rows is None or len(samples) < LEAST.get(name, 2):
                        continue
                    for measure, estimate in DISTANCES[name](samples, others, 0).items():
                        label = name_of(measure, each.name)
                        more = {"floor_count": estimate.count or len(samples)} if key == "floor" else {}
                        figures[label] = replace(figures[label], **{key: estimate.value}, **more)
        if self.judge is not None and self.judge.real is not None:
            label = f"label_accuracy@{self.judge.name}"
            figures[label] = replace(figures[label], floor=self.judge.real, floor_count=self.judge.real_count)
            figures[label] = replace(figures[label], ceiling=1 / len(spec.classes) if spec.classes else None)

    def _bits(self) -> dict[str, Figure]:
        """Bits/dim of the data under the model, in blocks that have generators of their own; shared by the processes."""
        assert self.model is not None
        model, source = self.model, self.reference.source
        numbers = np.sort(np.random.default_rng(0).permutation(len(source))[:BITS])
        starts = list(range(0, len(numbers), BITS_BLOCK))
        mine = starts[self.engine.share(len(starts))]
        found: dict[str, list[np.ndarray]] = {}
        for done, start in enumerate(mine, start=1):
            batch = source.batch(numbers[start : start + BITS_BLOCK]).to(model.device)
            told = model.recipe.bits_per_dim(
                model.network, model.spec, batch, generator=seeded(self.seeds[0], 1, start), times=seeded(self.seeds[0], 2, start)
            )
            for name, bits in told.items():
                found.setdefault(name, []).append(bits.detach().double().cpu().numpy())
            self.on_progress("bits/dim", done, len(mine))
        joined: dict[str, list[np.ndarray]] = {}
        for each in self.engine.all_of(found):
            for name, parts in each.items():
                joined.setdefault(name, []).extend(parts)
        if not joined:
            raise ValueError(f"{model.name} is {model.sampler.kind}, which has no likelihood; leave bpd out of --metrics.")
        figures = {}
        for name, parts in joined.items():
            bits = np.concatenate(parts)
            error = float(standard_error(torch.from_numpy(bits)))
            figures[f"bits_per_dim_{name}"] = Figure(float(bits.mean()), _finite(error), len(bits))
        return figures

    def _manifest(self, collected: Sequence[Collected]) -> dict[str, Any]:
        subject = self.subject.manifest()
        manifest: dict[str, Any] = {
            "samples": {"name": self.subject.name, "count": self.subject.count, "resized": self.settings.get("resized", "no")},
            "data": self.reference.manifest(),
            "features": {each.name: {"sha256": each.sha256, "dim": each.dim, "resize": each.resize} for each in self.features},
            "settings": {name: value for name, value in self.settings.items() if name != "resized"},
            "metrics": list(self.metrics),
        }
        if isinstance(self.subject, Drawn):
            rows = sum(each.evaluations for each in collected)
            samples = self.subject.count * len(self.seeds)
            manifest["samples"]["seeds"] = list(self.seeds)
            manifest["samples"]["evaluations"] = (
                round(rows / samples, 3) if rows else self.subject.model.sampler.evaluations(self.subject.options)
            )
            manifest["model"] = subject
            manifest["chosen"] = chosen.sentence(self.subject.model, self.reference, subject["sampling"], self.seeds)
        else:
            manifest["samples"] |= subject
            manifest["chosen"] = "unknown: the samples do not tell how their steps and guidance were chosen"
        if self.judge is not None:
            manifest["judge"] = {"name": self.judge.name, "sha256": self.judge.sha256}
        return manifest | {"device": _device(self.engine), "versions": _versions()}


LEAST = {"prdc": 6, "kd": 4, "c2st": 40}  # samples that a distance needs at least


def x_of(source: Source, rows: np.ndarray) -> np.ndarray:
    """x0 of some rows, in float32."""
    return np.concatenate([source.batch(rows[start : start + 1024]).x.numpy() for start in range(0, len(rows), 1024)])


def model_of(samples: Any, ema: float | None) -> Model | None:
    """The model, where one is named."""
    if isinstance(samples, Model):
        return samples
    if isinstance(samples, str | Path):
        text, path = str(samples), Path(samples)
        is_folder = path.is_dir() and ((path / "recipe.yaml").is_file() or (path / "model_index.json").is_file())
        if text.startswith("zoo:") or is_folder:
            return load(samples, ema=ema)
        if not path.exists():
            folder_of(samples)  # says what a model is
    return None


def _has_labels(subject: Subject) -> bool:
    if isinstance(subject, Given):
        return isinstance(subject.source.spec.conditions.get("labels"), Classes)
    if subject.conditions.get("labels") is not None:
        return [str(label) for label in subject.conditions["labels"]] != ["none"]
    return bool(subject.model.spec.classes) and not subject.conditions.get("cond")


def _rank(covariance: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(covariance, hermitian=True))


def _standard_error(values: np.ndarray) -> float | None:
    return _finite(float(np.std(values, ddof=1) / math.sqrt(len(values)))) if len(values) > 1 else None


def _finite(error: float | None) -> float | None:
    return None if error is None or not math.isfinite(error) else error


def _device(engine: Engine) -> dict[str, Any]:
    return {
        "kind": engine.device.type,
        "processes": engine.processes,
        "machine": platform.machine(),
        "processor": processor("model name"),
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("sfumato", "torch", "numpy", "pillow")}
