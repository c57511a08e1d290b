"""Twisted sequential Monte Carlo: weighted particles whose law tends to the posterior as their number grows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.condition import CondLike, spread, take
from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.restoration.moments import Covariance, Full, Isotropic, covariance_of, posterior_draw
from sfumato.restoration.observed import Draws, Observed, OnStep, differentiable, ratio, spread_levels
from sfumato.schedule import Level


@dataclass(frozen=True)
class _Seen:
    """What the predictor says at some particles: x0_hat, E[x0 | x_t, y], the moments, and log p(y | x_t) by these."""

    x0: Float[Tensor, "n d"]
    shifted: Float[Tensor, "n d"]
    moments: Full | Isotropic
    log_twist: Float[Tensor, "n"]


Look = Callable[[Tensor, Level], _Seen]


@dataclass(frozen=True)
class TwistedSMC:
    """Particles moved towards y by a Gaussian guess of p(y | x_t) (the twist), and weighted so that the guess cancels.

    With N(x0_hat, C) for x0 given x_t, the model's chain is p(x_s | x_t) = ∫ q(x_s | x_t, x0) N(x0; x0_hat, C). The proposal is the same
    chain given y, and the weight is what is left: exact for any twist as the particles grow many, for a chain that is itself exact as
    the levels grow many (for Gaussian data, at any number). C is the predictor's covariance where it has it in closed form, and otherwise
    r² I with the mean variance of x0, from one product with the Jacobian a level (Bao et al. 2022, arXiv:2206.07309); the proposal's mean
    then goes through the Jacobian, as PiGDM's.

    Draws depend on the model, y, the seed and the number of particles; the generator is one, or one a row, of which the first draw's are
    taken. Needs noise in y, and an operator with a cheap SVD unless the covariance is in closed form.

    Args:
        particles: how many, for each observation.
        threshold: particles are resampled where the effective sample size falls below this share of their number.
        batch: particles that the predictor is asked about at a time.

    Raises:
        ValueError: fewer than 2 particles, a threshold outside [0, 1], a batch below 1.

    Reference: Wu et al. (2023), alg. 1, arXiv:2306.17775; resampling: Douc et al. (2005), section 2.4 (systematic).
    """

    particles: int = 1024
    threshold: float = 0.5
    batch: int = 256

    def __post_init__(self) -> None:
        """Refuses options out of range."""
        if self.particles < 2 or self.batch < 1:
            raise ValueError(f"particles must be at least 2 and batch at least 1, got {self.particles} and {self.batch}.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], a share of the particles, got {self.threshold}.")

    def levels(self, steps: int = 60) -> list[Level]:
        """`spread_levels`: from where particles can begin as plain noise."""
        return spread_levels(steps)

    def __call__(
        self,
        predict: Predictor,
        observed: Observed,
        levels: Sequence[Level],
        count: int,
        cond: CondLike | None,
        generator: Generator | None,
        on_step: OnStep | None,
    ) -> Draws:
        """`count` of the particles for each observation, drawn by their weights."""
        if bool((observed.noise_std == 0).any()):
            raise ValueError("particles are weighted by the density of y, which has none without noise; give a noise_std above 0.")
        found = []
        for i in range(len(observed.y)):
            mine = slice(i, i + 1)
            source = generator if generator is None or isinstance(generator, torch.Generator) else generator[i]
            given = None if cond is None else spread(take(cond, mine) or {}, self.particles)
            with torch.no_grad():
                found.append(self._one(predict, observed.rows(mine).repeat(self.particles), levels, count, given, source, on_step))
        x, ess, log_evidence = zip(*found, strict=True)
        return Draws(torch.stack(x, 1), torch.stack(ess), torch.stack(log_evidence))

    def _one(
        self,
        predict: Predictor,
        observed: Observed,
        levels: Sequence[Level],
        count: int,
        cond: CondLike | None,
        generator: torch.Generator | None,
        on_step: OnStep | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For one observation: draws [count, *x], effective sample sizes [steps], log p(y)."""
        shape, covariance = observed.linear.shape, covariance_of(predict, cond)
        look = lambda x, level: self._look(predict, x, level, observed, covariance, cond, generator)  # noqa: E731
        x = levels[0].sigma * normal_like(observed.y.new_empty(self.particles, *shape), generator)
        now = look(x, levels[0])
        log_weights, log_evidence, sizes = now.log_twist, torch.zeros((), dtype=torch.float64), []
        for i, (t, s) in enumerate(pairwise(levels)):
            share = log_weights.softmax(0)
            sizes.append(1 / share.square().sum())
            if float(sizes[-1]) < self.threshold * self.particles:
                log_evidence = log_evidence + log_weights.logsumexp(0).cpu() - math.log(self.particles)
                rows = systematic(share, self.particles, generator)
                x, log_weights = x[rows], torch.zeros_like(log_weights)
                now = _Seen(now.x0[rows], now.shifted[rows], now.moments.rows(rows), now.log_twist[rows])
            x, step_weights, now = self._move(x, now, t, s, look, observed, generator)
            log_weights = log_weights + step_weights
            if on_step is not None:
                on_step(i, x)
        share = log_weights.softmax(0)
        sizes.append(1 / share.square().sum())
        log_evidence = log_evidence + log_weights.logsumexp(0).cpu() - math.log(self.particles)
        return x[systematic(share, count, generator)], torch.stack(sizes), log_evidence

    def _look(
        self,
        predict: Predictor,
        x: Tensor,
        level: Level,
        observed: Observed,
        covariance: Covariance | None,
        cond: CondLike | None,
        generator: torch.Generator | None,
    ) -> _Seen:
        """The predictor at every particle, `batch` of them at a time."""
        x0, shifted, moments = [], [], None
        scale, a2 = float(level.sigma) ** 2 / float(level.alpha), ratio(level) ** 2
        for start in range(0, len(x), self.batch):
            part = slice(start, start + self.batch)
            given = None if cond is None else take(cond, part)
            if covariance is not None:
                x0.append(predict(x[part], level, given).x0.flatten(1))
                continue
            prediction, pull = differentiable(predict, x[part], level, given)
            mean, mine = prediction.x0.flatten(1), observed.rows(part)
            if moments is None:  # the mean variance over the first batch, by a random probe: it only has to be about right
                z = normal_like(mean, generator).sign()
                variance = float((z * scale * pull(z).flatten(1)).mean())
                moments = Isotropic(min(max(variance, 1e-3 * a2 / (1 + a2)), a2), observed)
            inward = mine.linear.adjoint(Isotropic(moments.variance, mine).solve(mine.residual(mean)))
            x0.append(mean)
            shifted.append(mean + scale * pull(inward).flatten(1))
        means = torch.cat(x0)
        r = observed.residual(means)
        if moments is None:
            assert covariance is not None
            moments = Full(covariance(x, level), observed)
            shifted = [means + moments.gain(r)]
        return _Seen(means, torch.cat(shifted), moments, moments.log_likelihood(r))

    def _move(
        self,
        x: Tensor,
        now: _Seen,
        t: Level,
        s: Level,
        look: Look,
        observed: Observed,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, _Seen]:
        """x_s by the proposal, the logarithm of what it adds to the weights, and what the predictor says there."""
        a, b = ratio(t), ratio(s)
        kept = (b / a) ** 2
        variance = b * b * (1 - kept)  # of q(x_s | x_t, x0), for x_s / alpha_s = kept x_t / alpha_t + (1 - kept) x0 + …
        u, flat = (x / t.alpha).flatten(1), torch.empty_like(now.x0)
        if isinstance(now.moments, Full):
            x0 = posterior_draw(now.moments, now.x0, generator)
            v = kept * u + (1 - kept) * x0 + math.sqrt(variance) * normal_like(flat, generator)
            if b == 0:
                return v.reshape(x.shape), torch.zeros_like(now.log_twist), now
            move, r = v - kept * u - (1 - kept) * now.x0, observed.residual(now.x0)
            before = now.moments.log_likelihood_given(r, 1 - kept, variance, move)  # log p(y | x_s, x_t) by the Gaussian at x_t
            then = look((s.alpha * v).reshape(x.shape), s)
            return (s.alpha * v).reshape(x.shape), then.log_twist - before, then
        svd, r2 = observed.svd, now.moments.variance
        known = r2 * svd.singular.to(flat).square() / (r2 * svd.singular.to(flat).square() + observed.variance)
        z = normal_like(flat, generator)
        spread = (variance + (1 - kept) ** 2 * r2 * (1 - known)).sqrt()
        model = kept * u + (1 - kept) * now.x0
        v = kept * u + (1 - kept) * now.shifted + svd.from_v(spread * z)
        wide = variance + (1 - kept) ** 2 * r2
        log_model = -0.5 * ((v - model).double().square() / wide + math.log(wide)).sum(1)
        log_proposal = -0.5 * (z.double().square() + 2 * spread.double().log()).sum(1)
        moved = (s.alpha * v).reshape(x.shape)
        if b == 0:  # the twist of the data is the likelihood itself
            r = observed.residual(v).double() / observed.noise_std.double()
            likelihood = -0.5 * (r.square() + (2 * math.pi * observed.variance.double()).log()).sum(1)
            return moved, log_model - log_proposal + likelihood - now.log_twist, now
        then = look(moved, s)
        return moved, log_model - log_proposal + then.log_twist - now.log_twist, then


def systematic(share: Float[Tensor, "n"], count: int, generator: torch.Generator | None) -> Int[Tensor, "count"]:
    """`count` rows, each in proportion to its share, from one uniform number: each count · share times, give or take less than one."""
    device = share.device if generator is None else generator.device
    start = torch.rand((), generator=generator, dtype=torch.float64, device=device).cpu()
    places = (torch.arange(count, dtype=torch.float64) + start) / count
    return torch.searchsorted(share.double().cpu().cumsum(0), places).clamp(max=len(share) - 1).to(share.device)
