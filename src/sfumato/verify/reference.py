"""Compares sfumato with numbers of another implementation: every key of an .npz file in the layout that the README beside it describes.

A file holds cases, each a chain of K steps and ten examples: the chain, its posteriors, the predictions from given network outputs for
three parameterisations, four variances and clipping, the terms of the bound, the losses, DDIM, its inversion, the ancestral step. Index i
is the step from level i + 1 to level i.

Their decoder uses Φ(x) ≈ ½ (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) and clips probabilities at 1e-12; ours is exact. The decoder term
(index 0) is therefore computed from our mean and variance with their Φ, so that everything else agrees to rounding.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato import likelihood, loss, process
from sfumato.noise import normal_like
from sfumato.prediction import Prediction, eps_target, previous_target, x0_target
from sfumato.sampling import steps
from sfumato.schedule import Discrete, Level
from sfumato.verify.parts import constant

TOLERANCE = 1e-9
FLOOR = 1e-7  # smaller values are differences of numbers of size 1 on both sides: they must agree to 1e-16 absolutely
INPUTS = ("base_betas", "kept_timesteps", "t", "x0", "eps", "noise", "network_mean_output", "network_var_output")
VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}


@dataclass(frozen=True)
class Comparison:
    """One key: the largest error relative to the largest value of its example, and whether it is within the tolerance."""

    key: str
    error: float

    @property
    def passed(self) -> bool:
        """Whether both agree to rounding."""
        return self.error <= TOLERANCE


def compare(path: str | Path) -> Iterator[Comparison]:
    """Compares every key of a file, case by case.

    Raises:
        ValueError: no such file, a file of another layout, or a key that the layout does not have.
    """
    try:
        with np.load(path) as file:
            values = {key: torch.from_numpy(file[key]) for key in file.files}
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as an .npz of numbers ({error}); give a file in the layout of the reference.") from None
    cases: dict[str, dict[str, Tensor]] = {}
    for key, value in values.items():
        name, slash, rest = key.partition("/")
        if not slash:
            raise ValueError(f"{path}: keys are CASE/NAME, got {key!r}.")
        cases.setdefault(name, {})[rest] = value
    for name, case in cases.items():
        missing = [key for key in INPUTS if key not in case]
        if missing:
            raise ValueError(f"{path}: case {name} lacks {', '.join(missing)}.")
        ours = Case(case)
        for key, theirs in case.items():
            if key not in INPUTS:
                yield Comparison(f"{name}/{key}", _error(ours(key), theirs))


def _error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest |value| of each row; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf
    ours, theirs = ours.double().reshape(len(ours), -1), theirs.double().reshape(len(theirs), -1)
    scale = theirs.abs().amax(1, keepdim=True)
    return float(((ours - theirs).abs() / scale.clamp(min=FLOOR)).nan_to_num(nan=math.inf).max())


class Case:
    """One case as sfumato computes it: `case(key)` is our value for that key."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        """Takes the inputs."""
        base = Discrete(values["base_betas"])
        kept = [0, *(values["kept_timesteps"].long() + 1).tolist()]
        self.levels = [base.level(k / len(base)) for k in kept]
        self.chain = Discrete.through(self.levels[::-1])
        self.index = values["t"].long()
        self.x0, self.eps, self.noise = (values[key].double() for key in ("x0", "eps", "noise"))
        self.raw, self.var = values["network_mean_output"].double(), values["network_var_output"].double()
        self.t, self.s = self._at(self.index + 1), self._at(self.index)
        self.last = process.posterior_log_variance(self.levels[2], self.levels[1])
        self.x_t = process.marginal(self.x0, self.t).mean + self.t.sigma * self.eps

    def _at(self, k: Tensor) -> Level:
        """The level of each example."""
        shape = (-1, *(1,) * (self.x0.ndim - 1))
        alpha, sigma = (torch.stack([getattr(level, name) for level in self.levels]) for name in ("alpha", "sigma"))
        return Level(alpha[k].reshape(shape), sigma[k].reshape(shape))

    def __call__(self, key: str) -> Tensor:
        """Our value for a key of the layout.

        Raises:
            ValueError: the layout has no such key.
        """
        chain = self._of_the_chain
        if key in chain:
            return chain[key]()
        if key.startswith("ddim/eta"):
            return self._step(steps.DDIM(float(key.removeprefix("ddim/eta"))), self.prediction("eps"))
        match key.split("/"):
            case [mean, variance, clip, what] if clip in ("clip0", "clip1"):
                return self._model(mean, variance, clip == "clip1", what)
            case [mean, variance, what]:
                return self._loss(mean, variance, what)
        raise ValueError(f'the layout of the reference has no key "{key}".')

    @cached_property
    def _of_the_chain(self) -> dict[str, Callable[[], Tensor]]:
        def along(f: Callable[[Level, Level], Tensor]) -> Tensor:
            return torch.stack([f(t, s) for s, t in zip(self.levels, self.levels[1:], strict=False)])

        one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        log_small = partial(along, lambda t, s: process.posterior_log_variance(t, s))
        return {
            "betas": lambda: along(lambda t, s: process.transition_log_variance(s, t).exp()),
            "alphas_cumprod": lambda: along(lambda t, s: t.alpha.square()),
            "posterior_variance": lambda: log_small().exp(),
            "posterior_log_variance_clipped": lambda: torch.cat([self.last[None], log_small()[1:]]),
            "posterior_mean_coef_x0": lambda: along(lambda t, s: process.posterior(one, none, t, s).mean),
            "posterior_mean_coef_xt": lambda: along(lambda t, s: process.posterior(none, one, t, s).mean),
            "x_t": lambda: self.x_t,
            "posterior_mean": lambda: process.posterior(self.x0, self.x_t, self.t, self.s).mean,
            "prior_bpd": lambda: likelihood.prior_bits(self.x0, self.levels[-1]),
            "ddim/inversion": self._inversion,
            "ancestral/fixed_small": lambda: self._step(steps.Ancestral("small"), self.prediction("eps", clip=True)),
        }

    def prediction(self, mean: str, fraction: Tensor | None = None, *, clip: bool = False) -> Prediction:
        """The prediction from the given network output, read as eps, x0 or the previous mean."""
        output, target = {
            "eps": (self.raw, eps_target),
            "x0": (0.5 * self.raw, x0_target),
            "prev": (0.9 * self.x_t + 0.05 * self.raw, partial(previous_target, chain=self.chain)),
        }[mean]
        solved = Prediction.solve(output, self.x_t, self.t, target, fraction)
        return Prediction.from_x0(solved.x0.clamp(-1, 1), self.x_t, self.t, fraction) if clip else solved

    def _variance(self, name: str) -> tuple[str | Tensor, Tensor | None]:
        """The variance as `process.reverse` takes it, and the fraction for the prediction."""
        if name == "learned":  # in their code: a residual on the log variance
            small = process.posterior_log_variance(self.t, self.s)
            return torch.where(self.s.sigma == 0, self.last, small) + 0.2 * self.var, None
        return VARIANCES[name], (self.var + 1) / 2 if name == "learned_range" else None

    def _model(self, mean: str, variance: str, clip: bool, what: str) -> Tensor:
        kind, fraction = self._variance(variance)
        clipped = self.prediction(mean, fraction, clip=clip)
        used = self.prediction(mean, fraction) if mean == "prev" else clipped  # their code never clips a mean predicted by the network
        model = process.reverse(used, self.x_t, self.t, self.s, variance=kind, last_log_variance=self.last)
        if what == "pred_x0":
            return clipped.x0
        if what == "mean":
            return model.mean
        if what == "log_variance":
            return model.log_variance.expand_as(model.mean)
        if what == "vlb_term_bpd":
            return self._term(used, kind, model)
        raise ValueError(f'the layout of the reference has no entry "{what}" of a model.')

    def _term(self, prediction: Prediction, kind: str | Tensor, model: process.Normal) -> Tensor:
        term = likelihood.term_bits(prediction, self.x0, self.x_t, self.t, self.s, variance=kind, last_log_variance=self.last)
        return torch.where(self.index == 0, _their_decoder(self.x0, model), term)

    def _loss(self, mean: str, variance: str, what: str) -> Tensor:
        kind, fraction = self._variance(variance)
        known = self.prediction(mean, fraction)
        weight = {"eps": loss.eps_weight, "x0": loss.x0_weight, "prev": partial(loss.previous_weight, chain=self.chain)}[mean]
        predict = constant(known)
        simple = loss.simple(predict, self.x0, self.eps, self.t, weight=weight)
        model = process.reverse(known, self.x_t, self.t, self.s, variance=kind, last_log_variance=self.last)
        scale = (len(self.levels) - 1) / 1000
        bound = scale * self._term(known, kind, model)
        if what == "loss_mse":
            return simple
        if what == "loss_vlb":
            return bound
        if what == "loss_hybrid" and variance == "learned_range":  # the public loss, except for the decoder's Φ
            ours = loss.hybrid(
                predict, self.x0, self.eps, self.t, self.s, steps=len(self.levels) - 1, weight=weight, last_log_variance=self.last
            )
            return torch.where(self.index == 0, simple + bound, ours)
        if what == "loss_hybrid":
            return simple + bound
        raise ValueError(f'the layout of the reference has no loss "{what}".')

    def _step(self, step: steps.DDIM | steps.Ancestral, known: Prediction) -> Tensor:
        """One step with the file's noise in place of ours: the step is affine in its noise, with the std of its law as factor."""
        rows = []
        for row, i in enumerate(self.index.tolist()):
            t, s, x = self.levels[i + 1], self.levels[i], self.x_t[row : row + 1]
            mine = Prediction(known.x0[row : row + 1], known.eps[row : row + 1])
            moved, _ = step(constant(mine), x, t, s, None, torch.Generator().manual_seed(row))
            drawn = normal_like(x, torch.Generator().manual_seed(row))
            eta = step.eta if isinstance(step, steps.DDIM) else 1.0
            deviation = eta * (process.posterior_log_variance(t, s) / 2).exp()
            rows.append(moved + deviation * (self.noise[row : row + 1] - drawn))
        return torch.cat(rows)

    def _inversion(self) -> Tensor:
        """The deterministic step upwards; beyond the last level there is only noise."""
        nothing = torch.zeros((), dtype=torch.float64)
        above, known, rows = [*self.levels, Level(nothing, nothing + 1)], self.prediction("eps"), []
        for row, i in enumerate(self.index.tolist()):
            mine = Prediction(known.x0[row : row + 1], known.eps[row : row + 1])
            rows.append(steps.DDIM()(constant(mine), self.x_t[row : row + 1], above[i + 1], above[i + 2], None, None)[0])
        return torch.cat(rows)


def _their_decoder(x0: Tensor, model: process.Normal) -> Tensor:
    """-log of the bin's probability in bits/dim, with their approximation of Φ and their clipping."""

    def phi(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    scale = (-0.5 * model.log_variance).exp()
    upper, lower = phi(scale * (x0 - model.mean + 1 / 255)), phi(scale * (x0 - model.mean - 1 / 255))
    inside = torch.where(x0 > 0.999, 1 - lower, upper - lower)
    return -torch.where(x0 < -0.999, upper, inside).clamp(min=1e-12).log().flatten(1).mean(1) / math.log(2)
