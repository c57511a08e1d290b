"""The reverse SDE to a given accuracy, with steps of its own choice in each row."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.ode import per_row
from sfumato.sampling.steps.brownian import bridge
from sfumato.sampling.steps.chain import Ancestral
from sfumato.sampling.steps.history import half_log_snr
from sfumato.schedule import Level, vp_scales

_LONGEST = 0.5  # in half log-SNR: over a longer step x0 follows the noise that was added, and the two steps agree whatever was missed


@dataclass(frozen=True)
class AdaptiveSDE:
    """From t to s in as many steps as the tolerance takes, each row its own: an ancestral step, and one with the mean of old and new x0.

    A step of a row is taken where the difference of the two, as a root mean square over atol + rtol · |u| at unit scale, is at most 1; the
    second is then kept, which has weak order 2. The noise of a step that is refused is not lost: the shorter one takes it from the bridge
    to it, since noise that is drawn again would be chosen by its size. The levels of the walk are stops on the way, so few are best: every
    step of the walk takes two evaluations for each nat of log-SNR or more, as many as its slowest row. A step from a level without signal,
    or to one without noise, is Ancestral's (one evaluation).

    Args:
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step, at unit scale; two greys of 256 by default, as the paper has it.
        max_steps: between two levels, taken and refused together.

    Reference: Jolicoeur-Martineau et al. (2021), alg. 1 and section 3.1, arXiv:2105.14080; Rackauckas & Nie (2017), for the refused steps.
    """

    rtol: float = 0.01
    atol: float = 0.0078
    max_steps: int = 1000

    def __post_init__(self) -> None:
        """Refuses tolerances that are not positive."""
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"tolerances must be positive, got rtol = {self.rtol} and atol = {self.atol}.")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}.")

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: Tensor | None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Tensor]:
        """All steps from t to s; remembers each row's last length in half log-SNR.

        Raises:
            ValueError: more than max_steps.
        """
        start, end = half_log_snr(t), half_log_snr(s)
        length = torch.full((len(x),), 0.1, dtype=torch.float64) if memory is None else memory
        if math.isinf(start) or math.isinf(end):
            return Ancestral()(predict, x, t, s, None, generator)[0], length
        now, u = torch.full_like(length, start), x / float(torch.hypot(t.alpha, t.sigma))
        noise, drawn = torch.zeros_like(x), [[] for _ in x]
        for _ in range(self.max_steps):
            stops = torch.tensor([row[-1][0] if row else math.inf for row in drawn], dtype=torch.float64)
            then = torch.minimum(now + length, stops.clamp(max=end))
            h, moving = then - now, now < end
            ahead = _ahead(noise, drawn, h, stops - then, generator)
            here, there = _levels(now, u), _levels(then, u)
            x0 = predict(u, here).x0
            kept = per_row((-h).exp(), u)
            ratio = there.sigma / here.sigma * kept
            gain, fresh = there.alpha - here.alpha * ratio, there.sigma * (ahead - kept * noise)
            low = ratio * u + gain * x0 + fresh
            high = ratio * u + gain / 2 * (x0 + predict(low, there).x0) + fresh
            allowed = self.atol + self.rtol * torch.maximum(u.abs(), high.abs())
            error = ((high - low) / allowed).flatten(1).square().mean(1).sqrt().cpu().double()
            good = error <= 1  # an error that is not a number is not good
            for i in moving.nonzero()[:, 0].tolist():
                if stops[i] == then[i]:
                    drawn[i].pop()
                if not good[i]:
                    drawn[i].append((float(then[i]), ahead[i]))
            noise = torch.where(per_row(good, u).bool(), ahead, noise)
            u = torch.where(per_row(good & moving, u).bool(), high, u)
            now = torch.where(good, then, now)
            factor = (0.9 * error ** (-2 / 3)).nan_to_num(0.2, posinf=5.0).clamp(0.2, 5.0)
            length = torch.where(moving & ((then < end) | ~good), h * factor, length).clamp(max=_LONGEST)
            if bool((now == end).all()):
                return float(torch.hypot(s.alpha, s.sigma)) * u, length
        row = int((now < end).nonzero()[0])
        raise ValueError(
            f"{int((now < end).sum())} of {len(x)} rows are not through after {self.max_steps} steps, row {row} stands at log-SNR "
            f"{2 * float(now[row]):.4g}; raise rtol and atol, or max_steps, or look for NaN there."
        )


def _ahead(noise: Tensor, drawn: list[list[tuple[float, Tensor]]], h: Tensor, rest: Tensor, generator: Generator | None) -> Tensor:
    """The noise in units of sigma (`brownian`) after h, on its way to what refused steps have drawn of each row's future, nearest last.

    A row draws only where it moves and nothing is drawn there yet.
    """
    pinned, fresh = torch.zeros_like(noise), torch.zeros_like(noise)
    for i, row in enumerate(drawn):
        if row:
            pinned[i] = row[-1][1]
    new = ((h > 0) & (rest > 0)).nonzero()[:, 0]
    if len(new):
        own = generator if generator is None or isinstance(generator, torch.Generator) else [generator[i] for i in new.tolist()]
        fresh[new] = normal_like(noise[new], own)
    from_now, from_pinned, deviation = (per_row(torch.as_tensor(each), noise) for each in bridge(h.numpy(), rest.numpy()))
    return from_now * noise + from_pinned * pinned + deviation * fresh


def _levels(half: Tensor, like: Tensor) -> Level:
    """A level a row, at unit scale."""
    alpha, sigma = vp_scales(2 * half)
    return Level(per_row(alpha, like), per_row(sigma, like))
