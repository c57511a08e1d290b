"""Variational diffusion: the bound in continuous time, with a schedule that is trained with the model.

    -log p(x) <= KL(q(z_1 | x) ‖ N(0, I)) + ½ E_t[-dλ/dt |eps_hat - eps|²] - E log p(x | z_0),        λ = log_snr

with t in [0, 1], z_0 the least noisy level and z_1 the noisiest. The middle term depends only on the ends of the schedule (it is an
integral over λ), so between them the schedule is free; it is trained to reduce the variance of the term's estimate. E[L] is constant, so
the gradient of E[L²] is that of the variance. One backward pass gives both gradients, as ∇ L² = 2 L ∇L. Kingma et al. (2021), sections
4.1-5 and appendix I, arXiv:2107.00630.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato import loss as losses
from sfumato.denoiser import CondLike, Denoiser, Predictor
from sfumato.deprecated import old_keywords
from sfumato.latent.likelihood import refuse_outside
from sfumato.likelihood.bound import Bound, prior_bits, term_bits
from sfumato.noise import Generator, normal_like
from sfumato.runtime import moved
from sfumato.schedule import LearnedSchedule, Level, Schedule


class VDM(nn.Module):
    """A denoiser and the schedule that is trained with it."""

    @old_keywords(width="bin_width")
    def __init__(self, denoiser: Denoiser, schedule: LearnedSchedule, *, bin_width: float = 2 / 255) -> None:
        """Combines denoiser and schedule.

        Args:
            denoiser: of any target.
            schedule: learned; the bound trains its two ends, the variance its curve.
            bin_width: distance of neighbouring values of data in [-1, 1]: 2/255 for bytes.
        """
        super().__init__()
        self.denoiser, self.schedule, self.bin_width = denoiser, schedule, bin_width
        self.net = Trainable(denoiser.net, schedule)

    def loss(
        self, x0: Float[Tensor, "b *x"], eps: Float[Tensor, "b *x"], t: Float[Tensor, "b"], cond: CondLike | None = None
    ) -> Float[Tensor, "b"]:
        """The full bound at one time an example, in bits/dim, with both kinds of gradient for the schedule; t uniform in [0, 1]."""
        clean, noisy = (self.schedule.level(end) for end in (0.0, 1.0))
        diffusion = diffusion_bits(self.denoiser, x0, eps, t, self.schedule, cond)
        numbers = torch.stack([clean.alpha, clean.sigma, clean.alpha, clean.sigma, noisy.alpha, noisy.sigma]).to(x0.dtype)
        ends = moved(numbers, x0).unbind()  # together, so that their gradients come back together
        z_0 = ends[0] * x0 + ends[1] * eps
        last = _decoder_bits(x0, z_0, Level(ends[2], ends[3]), _reach(clean, x0, self.bin_width), self.bin_width)
        return diffusion + prior_bits(x0, Level(ends[4], ends[5])) + last


class Trainable(nn.Module):
    """All trained parameters of a `VDM`, in one module."""

    def __init__(self, denoiser: nn.Module, schedule: LearnedSchedule) -> None:
        """Holds the network and the schedule."""
        super().__init__()
        self.denoiser, self.schedule = denoiser, schedule

    def hidden(self) -> Iterator[nn.Parameter]:
        """The network's hidden matrices."""
        return self.denoiser.hidden()  # pyright: ignore[reportCallIssue] - Optimizer asks only networks that have it


def diffusion_bits(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    eps: Float[Tensor, "b *x"],
    t: Float[Tensor, "b"],
    schedule: LearnedSchedule,
    cond: CondLike | None = None,
) -> Float[Tensor, "b"]:
    """`loss.vdm`: its value and its gradients, except that the schedule's curve gets the gradient of the squared loss.

    The predictor and the schedule's two ends get the gradient of the loss itself. Kingma et al. (2021), appendix I.2.
    """
    with torch.enable_grad():
        leaf = t.detach().cpu().double().requires_grad_()
        place = schedule.place(leaf)
        (rate,) = torch.autograd.grad(place.sum(), leaf, create_graph=True)
        factor: list[Tensor] = []
        for part in (place, rate):
            if part.requires_grad:
                part.register_hook(lambda gradient: gradient * factor[0])
    log_snr = schedule.log_snr_max - schedule.span.exp() * place
    numbers = torch.stack([*schedule.scales(log_snr), schedule.span.exp() * rate]).to(x0.dtype)
    alpha, sigma, fall = moved(numbers, x0).unbind()  # together, so that their gradients come back together
    level = Level(*(scale.reshape(-1, *(1,) * (x0.ndim - 1)) for scale in (alpha, sigma)))
    error = predict(level.alpha * x0 + level.sigma * eps, level, cond).eps - eps
    bits = 0.5 * fall * error.square().flatten(1).mean(1) / math.log(2)
    factor.append(2 * bits.detach().cpu().double())
    return bits


@old_keywords(width="bin_width")
def decoder_bits(x0: Float[Tensor, "b *x"], z_0: Float[Tensor, "b *x"], level: Level, *, bin_width: float = 2 / 255) -> Float[Tensor, "b"]:
    """-log p(x | z_0), p(x_i | z_0) ∝ q(z_0,i | x_i) over the values of a grid in [-1, 1], in bits/dim.

    Values so far from x that together they weigh less than float64 rounding are left out of the sum.

    Reference: Kingma et al. (2021), eq. 7 and appendix E, arXiv:2107.00630.
    """
    return _decoder_bits(x0, z_0, level.to(x0), _reach(level, x0, bin_width), bin_width)


def _reach(level: Level, like: Tensor, bin_width: float) -> int:
    """How many values on each side of x are summed: weights below e^(-8.5²/2) around z_0 are left out, and x is near z_0."""
    ratio = (level.sigma.detach().to(like.dtype) / level.alpha.detach().to(like.dtype)).item()
    return min(round(2 / bin_width), math.ceil(17 * ratio / bin_width) + 1)


def _decoder_bits(x0: Tensor, z_0: Tensor, level: Level, reach: int, bin_width: float) -> Tensor:
    """`decoder_bits` without the values more than `reach` steps of the grid away."""
    alpha, sigma, count = level.alpha, level.sigma, round(2 / bin_width)
    index = ((x0 + 1) / bin_width).round()
    terms = []
    for offset in range(-reach, reach + 1):
        value = (index + offset) * bin_width - 1
        log_q = -0.5 * ((z_0 - alpha * value) / sigma).square()
        terms.append(torch.where((index + offset < 0) | (index + offset > count), -torch.inf, log_q))
    # If the posterior is this sharp, one term dominates; subtracting it first keeps the precision of the rest.
    here = terms[reach]
    others = torch.stack([term - here for term in terms])
    return others.logsumexp(0).flatten(1).mean(1) / math.log(2)


@old_keywords(width="bin_width")
@torch.no_grad()
def bound(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    schedule: Schedule,
    cond: CondLike | None = None,
    *,
    steps: int | None = None,
    draws: int = 8,
    bin_width: float = 2 / 255,
    generator: Generator | None = None,
    times: torch.Generator | None = None,
) -> Bound:
    """The bound in bits/dim: prior, diffusion, and the grid's decoder at z_0; in continuous time, or for a chain of `steps`.

    Args:
        predict: the model.
        x0: data on the grid of their values, in [-1, 1].
        schedule: any schedule whose level at t = 0 has noise: learned or fixed.
        cond: conditions, one row an example.
        steps: T of the discrete bound, with levels at t = i/T: it decreases with T to the continuous bound (T → ∞, the default).
        draws: times (or steps of the chain) for each example, one from each of as many equal stretches.
        bin_width: distance of neighbouring values.
        generator: for the noise.
        times: generator for the times.

    Raises:
        ValueError: draws or steps below 1, a schedule without noise at t = 0, or data outside [-1, 1].

    Reference: Kingma et al. (2021), eqs. 11, 13, 15 and 17, arXiv:2107.00630.
    """
    if draws < 1 or (steps is not None and steps < 1):
        raise ValueError(f"draws and steps must be at least 1, got {draws} and {steps}.")
    clean, noisy = schedule.level(0.0), schedule.level(1.0)
    if float(clean.sigma) == 0:
        raise ValueError("this bound starts at a level with noise, but the schedule has none at t = 0; for a chain use likelihood.vlb.")
    refuse_outside(x0, -1.0, 1.0, "this bound")
    draws = draws if steps is None else min(draws, steps)
    terms = []
    for i in range(draws):
        u = (i + torch.rand(len(x0), generator=times, dtype=torch.float64)) / draws
        eps = normal_like(x0, generator)
        if steps is None:
            terms.append(_continuous(predict, x0, eps, u, schedule, cond))
        else:
            s = (u * steps).floor().clamp(max=steps - 1) / steps
            terms.append(steps * _discrete(predict, x0, eps, s + 1 / steps, s, schedule, cond))
    z_0 = clean.alpha.to(x0) * x0 + clean.sigma.to(x0) * normal_like(x0, generator)
    bits = torch.stack(terms, dim=1)
    weights = torch.full((draws,), 1 / draws).to(bits)
    return Bound(prior_bits(x0, noisy.to(x0)), bits, decoder_bits(x0, z_0, clean, bin_width=bin_width), weights)


def _continuous(predict: Predictor, x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule, cond: CondLike | None) -> Tensor:
    return losses.vdm(predict, x0, eps, t, schedule, cond).detach()


def _discrete(predict: Predictor, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor, schedule: Schedule, cond: CondLike | None) -> Tensor:
    now, below = schedule.level(t.clamp(max=1), like=x0), schedule.level(s, like=x0)
    x_t = now.alpha * x0 + now.sigma * eps
    return term_bits(predict(x_t, now, cond), x0, x_t, now, below)
