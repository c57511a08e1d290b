"""A trained model as one object, whatever its kind: what training returns and `load` loads."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL.Image import Image
from torch import Tensor, nn

from sfumato import guide
from sfumato.condition import Classes, Condition
from sfumato.data.source import DataSpec, Source
from sfumato.denoiser import Predictor
from sfumato.kernels import choice
from sfumato.memory import by_parts
from sfumato.pictures import beside, cloud, gif, limits_of, picture, sheet
from sfumato.runtime import compile_networks
from sfumato.samples import Samples, sheet_columns
from sfumato.sampling import Step
from sfumato.schedule import Schedule
from sfumato.task import Request, Sampler, examples_of
from sfumato.tuning import TuningResult

Label = int | str  # a class by number or name; -1 or "none" for no class
Labels = Sequence[Label] | np.ndarray | Tensor


class Model:
    """A trained model with its recipe and the spec of its data."""

    def __init__(self, name: str, recipe: Any, spec: DataSpec, network: nn.Module, folder: Path | None = None) -> None:
        """Combines the parts.

        Args:
            name: for messages: the run folder, or `zoo:NAME`.
            recipe: a task, or a recipe of it.
            spec: of the data.
            network: what the task builds, with trained weights.
            folder: of the run, for files other than weights.
        """
        self.name, self.recipe, self.spec = name, recipe, spec
        self.network: Any = network
        self.sampler: Sampler = recipe.sampler(network, spec, folder, name)

    def __repr__(self) -> str:
        """One line."""
        parameters = sum(p.numel() for p in self.network.parameters())
        conditions = f", conditions {', '.join(self.spec.conditions)}" if self.spec.conditions else ""
        return f"Model({self.name}: {self.sampler.kind} of {list(self.spec.shape)}, {parameters:,} parameters{conditions})"

    def _repr_html_(self) -> str:
        """In a notebook: that line, and some samples if they can be drawn."""
        text, found = f"<p>{html.escape(repr(self))}</p>", None
        if self.spec.has_picture and not self.sampler.use:
            found = self.sheet(16 if self.spec.is_image else 500)
        if found is None:
            return text
        buffer = io.BytesIO()
        found.save(buffer, format="PNG")
        return f'{text}<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"/>'

    @property
    def device(self) -> torch.device:
        """The device of its network."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "Model":
        """Moves its network; returns itself."""
        self.network.to(device)
        return self

    def compile(self) -> "Model":
        """Has torch compile its networks at the first samples, which then take minutes; returns itself.

        Raises:
            ValueError: there is no C++ compiler, which code for a CPU needs.
        """
        choice.use(self.network, False)
        compile_networks(self.recipe.trained(self.network), self.device)
        return self

    @property
    def predictor(self) -> Predictor:
        """The denoiser, as a predictor.

        Raises:
            ValueError: a kind of model without one.
        """
        return self.sampler.predictor

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that it was trained with.

        Raises:
            ValueError: a kind of model without one.
        """
        return self.sampler.schedule

    def sample(
        self,
        count: int = 64,
        *,
        seed: int = 0,
        labels: Labels | None = None,
        cond: Mapping[str, Any] | None = None,
        steps: int | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
        temperature: float | None = None,
        noise: Float[Tensor, "n *x"] | np.ndarray | None = None,
        batch: int = 64,
        rows: slice = slice(None),
        on_batch: Callable[[int], None] | None = None,
        on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Samples:
        """Draws `count` samples; sample i depends only on (model, seed, i) and these options, not on `batch` or `rows`.

        Args:
            count: number of samples.
            seed: of the noise.
            labels: classes by number or name, used in turn, -1 or "none" for no label; by default every class in turn.
            cond: other conditions by name: one value for all samples, or a list used in turn; None for not given.
            steps: of the sampler; the recipe's by default.
            guidance: γ, the guidance scale: 1 = off, 0 = unconditional, or one scale for each condition by name; the recipe's by default (1
                if
            the model cannot be guided). Without a `classifier` it is classifier-free; with one it scales the classifier's gradient, and the
            model's labels are dropped, so that 1 is Bayes' rule.
            sampler: a name (`ancestral`, `ddim`, `heun`, `multistep`, …) or a step; the recipe's by default.
            classifier: log p(label | x_t), as `load_classifier` returns it.
            temperature: factor on the standard deviations of a VAE's latents.
            noise: standard normal noise to start from, one row for each of `count` samples, instead of the seed's.
            batch: samples drawn at a time.
            rows: the numbers of the samples to draw, if other processes draw the rest.
            on_batch: called with the number done after each batch.
            on_step: called after each step of a batch with its number, x_t and the predicted x0; an exception stops the sampling.

        Raises:
            ValueError: a count, batch or steps below 1, unknown names, conditions out of range, options that this kind does not support.
        """
        for name, number in (("count", count), ("batch", batch)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        mine = range(count)[rows]
        options = _asked_for(steps=steps, guidance=guidance, sampler=sampler, classifier=classifier, temperature=temperature)
        conditions = self.conditions(mine, labels, cond, options)
        self.sampler.check(options, conditions)
        start = self._noise(noise, count, mine)

        def draw(part: slice) -> Tensor:
            given = {name: condition[part].to(self.device) for name, condition in conditions.items()}
            mine_noise = None if start is None else start[part].to(self.device)
            return self.sampler(Request(mine[part], seed, self.device, given, options, mine_noise, on_step))

        done = by_parts(draw, len(mine), batch, on_batch)
        x = torch.cat(done) if done else torch.empty(0, *(size or 0 for size in self.spec.shape))
        return Samples(self.spec.codec.decode(x), {name: _array(condition) for name, condition in conditions.items()}, self.spec)

    def _noise(self, noise: Tensor | np.ndarray | None, count: int, mine: range) -> Tensor | None:
        """The given noise for these rows."""
        if noise is None:
            return None
        noise = torch.as_tensor(noise, dtype=torch.float32)
        if noise.shape != (count, *self.spec.sizes):
            raise ValueError(f"noise must have the shape {[count, *self.spec.sizes]}, one row a sample, got {list(noise.shape)}.")
        return noise[mine.start : mine.stop]

    def conditions(
        self,
        rows: Sequence[int],
        labels: Labels | None = None,
        cond: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Condition]:
        """The conditions of samples with these numbers: those asked for, in turn; others are not given if the model allows that.

        If nothing is asked for, the sampler's defaults: every class in turn.

        Raises:
            ValueError: a condition that the model does not have, or an invalid value.
        """
        asked = dict(cond or {})
        if labels is not None:
            if not self.spec.classes:
                raise ValueError(f"{self.name} has no classes; remove --labels.")
            asked["labels"] = labels
        if unknown := sorted(set(asked) - set(self.spec.conditions)):
            have = ", ".join(self.spec.conditions) or "none"
            raise ValueError(f'{self.name} has no condition "{unknown[0]}"; its conditions: {have}.')
        given, turn = {}, 1
        for name, spec in self.spec.conditions.items():
            value, every = asked.get(name), 1
            if name not in asked and (not asked or self.sampler.needs(name)):
                value = self.sampler.default(name, spec, options or {})
                if value is not None:
                    value, every, turn = list(value), turn, turn * len(value)
            given[name] = spec.rows(value, [row // every for row in rows], f"the condition {name} of {self.name}")
        return given

    def sheet(self, count: int | None = None, *, source: Source | None = None) -> Image | None:
        """A picture of samples from fixed noise, one class a column; None for data that have no picture.

        For a model that needs a condition without a default, such as a map, all conditions come from examples of `source`. Each sample is
        then shown beside its maps and above its other conditions in words.
        """
        if not self.spec.has_picture:
            return None
        is_points = len(self.spec.shape) == 1
        cycle = self.cycle()
        if count is None:
            count = 2000 if is_points else 8 * cycle if 0 < cycle <= 40 else 64
        batch = count if is_points else 64
        if source is None or not self.needs_examples:
            return picture(self.sample(count, batch=batch).values, columns=self.columns(count=count))
        given = examples_of(source, count, self.network).to(torch.device("cpu")).cond
        values = self.sample(min(map(len, given.values())), batch=batch, cond=given).values
        if is_points:
            return picture(values)
        specs = {name: spec for name, spec in self.spec.conditions.items() if name in given}
        maps = [shown for name, spec in specs.items() if (shown := spec.shown(given[name])) is not None]
        words = zip(*(spec.words(given[name]) for name, spec in specs.items()), strict=True)
        scale = max(1, round(56 / max(values.shape[1:3])))
        return sheet(beside([*maps, values]), scale=scale, captions=[" ".join(filter(None, each)) for each in words])

    @property
    def needs_examples(self) -> bool:
        """Whether some condition must be given and has no default, as a low-resolution picture."""
        return any(self.sampler.needs(name) and self.sampler.default(name, spec, {}) is None for name, spec in self.spec.conditions.items())

    def cycle(self, labels: Labels | None = None) -> int:
        """The number of samples after which their classes repeat; 0 without classes."""
        if labels is not None:
            return len(labels)
        counts = [len(spec.names) for spec in self.spec.conditions.values() if isinstance(spec, Classes)]
        return int(np.prod(counts)) if counts else 0

    def columns(self, labels: Labels | None = None, count: int = 64) -> int | None:
        """The number of columns for which each column has one class and the sheet is about square; None if impossible."""
        cycle = self.cycle(labels)
        return sheet_columns(cycle, count) if cycle else None

    def reverse_gif(
        self,
        path: str | Path,
        count: int = 64,
        *,
        seed: int = 0,
        labels: Labels | None = None,
        cond: Mapping[str, Any] | None = None,
        steps: int | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
    ) -> None:
        """Writes a GIF of the reverse process: the noise, then x_t after each step, at unit scale."""
        options = _asked_for(steps=steps, guidance=guidance, sampler=sampler, classifier=classifier)
        conditions = self.conditions(range(count), labels, cond, options)
        self.sampler.check(options, conditions)
        given = {name: condition.to(self.device) for name, condition in conditions.items()}
        self._gif(self.sampler.film(Request(range(count), seed, self.device, given, options)), Path(path), self.columns(labels, count))

    def forward_gif(self, path: str | Path, x0: Float[Tensor, "n *x"], *, frames: int = 40, seed: int = 0) -> None:
        """Writes a GIF of the forward process on x0: the same noise at growing levels."""
        self._gif(self.sampler.forward_film(x0, frames, seed), Path(path), None)

    def _gif(self, frames: Sequence[Tensor], path: Path, columns: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = [self.spec.codec.decode(frame.cpu()) for frame in frames]
        if self.spec.is_image:
            pictures = [sheet(value, columns=columns) for value in values]
        else:
            limits = limits_of(np.concatenate([values[0], values[-1]]))
            pictures = [cloud(value, limits=limits) for value in values]
        gif(pictures, path)

    def tune(self, steps: int, *, guidance: float | None = None, rows: int = 96, seed: int = 0) -> TuningResult:
        """Fits levels and method for a number of evaluations to this model: see `sfumato.tune`. `save_tuned` stores them in the run.

        Args:
            steps: evaluations of the model (of both branches, if it is guided).
            guidance: the guidance scale to fit for; the recipe's by default.
            rows: number of samples used, each class in turn.
            seed: of their noise.

        Raises:
            ValueError: a kind of model without noise levels.
        """
        return self.sampler.tune(steps, self.conditions(range(rows)), guidance=guidance, rows=rows, seed=seed)

    def reconstruct(self, values: Shaped[np.ndarray, "n *value"]) -> Shaped[np.ndarray, "n *value"]:
        """Encodes and decodes values.

        Raises:
            ValueError: a kind of model without latents.
        """
        return self.sampler.reconstruct(values)


def _asked_for(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _array(condition: Condition) -> np.ndarray:
    """A condition of samples for a file: -1 or NaN where it is not given."""
    value, given = condition.value, condition.given.reshape(-1, *(1,) * (condition.value.ndim - 1))
    return torch.where(given, value, torch.nan if value.is_floating_point() else -1).cpu().numpy()
