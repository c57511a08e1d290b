"""The exact likelihood of the probability flow, by the change of variables along the flow.

At unit scale (alpha² + sigma² = 1, reached by dividing any scales) the flow is du/dφ = v with alpha = cos φ, sigma = sin φ,
so over the half log-SNR λ = log(alpha/sigma)

    du/dλ = -alpha sigma v(u, λ)      log p(u_0) = log N(u_1; 0, I) + ∫ div(du/dλ) dλ  from λ_0 (data) to λ_1 (noise).

Song et al. (2021), eq. 39, arXiv:2011.13456; Salimans & Ho (2022), appendix D, arXiv:2202.00512. Only the two ends of the schedule matter.
Every example has its own step sizes, so its density does not depend on its batch.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.condition import take
from sfumato.denoiser import CondLike, Predictor
from sfumato.deprecated import old_keywords
from sfumato.likelihood.bound import standard_error
from sfumato.noise import Generator, normal_like
from sfumato.ode import State, dormand_prince, per_row
from sfumato.runtime import exact_dtype, moved
from sfumato.schedule import Level, Schedule, finite_ends, vp_scales

_LONGEST_STEP = 1.0  # a factor e of alpha/sigma, so that no scale of the data is skipped


@runtime_checkable
class Divergence(Protocol):
    """How to compute the trace of a Jacobian J from products e·J e with probes e."""

    def probes(self, x: Float[Tensor, "b *x"], generator: Generator | None) -> Float[Tensor, "p b *x"]:
        """The probes e, drawn once and kept along the flow."""
        ...

    def trace(self, products: Float[Tensor, "p b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """The trace from the products e·J e, and its standard error."""
        ...


@dataclass(frozen=True)
class Exact:
    """Every axis is a probe: d backward passes for each evaluation."""

    def probes(self, x: Float[Tensor, "b *x"], generator: Generator | None) -> Float[Tensor, "p b *x"]:
        """The d basis vectors."""
        d = x[0].numel()
        return torch.eye(d).to(x).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)

    def trace(self, products: Float[Tensor, "p b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Their sum, without error."""
        return products.sum(0), torch.zeros_like(products[0])


@dataclass(frozen=True)
class Hutchinson:
    """A mean over random probes with E[e eᵀ] = I: unbiased, one backward pass a probe. Grathwohl et al. (2019), eq. 8, arXiv:1810.01367.

    Args:
        count: probes for each example; a standard error needs two.
        gaussian: normal probes instead of signs (Rademacher); signs have the least variance.

    Raises:
        ValueError: a count below 1.
    """

    count: int = 2
    gaussian: bool = False

    def __post_init__(self) -> None:
        """Checks the count."""
        if self.count < 1:
            raise ValueError(f"Hutchinson needs at least one probe, got {self.count}.")

    def probes(self, x: Float[Tensor, "b *x"], generator: Generator | None) -> Float[Tensor, "p b *x"]:
        """Normal noise, or its signs."""
        noise = torch.stack([normal_like(x, generator) for _ in range(self.count)])
        return noise if self.gaussian else noise.sign()

    def trace(self, products: Float[Tensor, "p b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Their mean and its standard error, NaN for one probe."""
        mean = products.mean(0)
        return mean, (products - mean).square().sum(0).div(self.count * (self.count - 1) or math.nan).sqrt()


@dataclass(frozen=True, slots=True)
class FlowDensity:
    """log p(x) of each example in nats, and its errors.

    Args:
        log_prob: the log-density.
        probe_error: standard error from the divergence's probes; 0 if it is exact, NaN for a single probe.
        step_error: fourth-order minus fifth-order solution (the fifth is used), summed over steps, carried to log p by the score.
        evaluations: calls of the predictor.
    """

    log_prob: Float[Tensor, "b"]
    probe_error: Float[Tensor, "b"]
    step_error: Float[Tensor, "b"]
    evaluations: Int[Tensor, "b"]


def flow_density(
    predict: Predictor,
    x: Float[Tensor, "b *x"],
    schedule: Schedule,
    cond: CondLike | None = None,
    *,
    divergence: Divergence | None = None,
    tolerance: float = 1e-5,
    generator: Generator | None = None,
) -> FlowDensity:
    """log p(x) of x = x_t/alpha at the schedule's first level with noise, for the flow that ends in N(0, alpha² + sigma²) at its last.

    For an exact predictor this is the density of the data blurred by noise of standard deviation sigma/alpha at the first level (5.5e-4
    for a schedule that starts at 15 nats). The prior at the last level is that of `prior_bits`. The path is kept in float64 on the CPU,
    whatever the dtypes of x and of the network: at the first level, float32 would round it by more than the tolerance of a step. The
    predictor is called on the device of x, in float64 on a CPU and in float32 on other devices.

    Args:
        predict: any predictor that can be differentiated and treats rows independently.
        x: data at the scale of x0, not noised.
        schedule: the flow joins its ends; for a chain, its first level and its last level with signal.
        cond: conditions, one row an example.
        divergence: `Exact()` or `Hutchinson(count)`; by default exact up to 32 dimensions, two probes beyond.
        tolerance: error allowed in a step: of u, root mean square in units of its noise; of the log-determinant, in nats a dimension.
        generator: of the probes.

    Raises:
        ValueError: a tolerance that is not positive or cannot be met, or a predictor without a gradient.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}.")
    if divergence is None:
        divergence = Exact() if x[0].numel() <= 32 else Hutchinson()
    start, stop = (end.detach() / 2 for end in finite_ends(schedule))
    alpha = vp_scales(2 * start)[0]
    data = x.detach().cpu().double()
    flow = _Flow(predict, cond, divergence.probes(data, generator), x.device)
    u, products, missed, evaluations = flow.integrate(alpha * data, start, stop, divergence, tolerance)
    volume, probe_error = divergence.trace(products)
    prior = -0.5 * (u.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return FlowDensity((prior + volume + x[0].numel() * alpha.log()).to(x), probe_error.to(x), missed.to(x), evaluations)


def flow_log_prob(
    predict: Predictor,
    x: Float[Tensor, "b *x"],
    schedule: Schedule,
    cond: CondLike | None = None,
    *,
    divergence: Divergence | None = None,
    tolerance: float = 1e-5,
    generator: Generator | None = None,
) -> Float[Tensor, "b"]:
    """log p(x) in nats by the probability-flow ODE: `flow_density(…).log_prob`; `flow_density` also returns the errors."""
    return flow_density(predict, x, schedule, cond, divergence=divergence, tolerance=tolerance, generator=generator).log_prob


@dataclass(frozen=True)
class _Flow:
    """u and the products e·(∂u̇/∂u)e along the flow; every row has its own step sizes."""

    predict: Predictor
    cond: CondLike | None
    probes: Float[Tensor, "p b *x"]
    device: torch.device  # the predictor's

    def slope(self, rows: Tensor, half: Tensor, state: State) -> State:
        """du/dλ and the products [rows, p] at the half log-SNR of each row."""
        u = moved(state[0].detach(), self.device, exact_dtype(self.device))
        alpha, sigma = (per_row(scale, u) for scale in vp_scales(2 * half))
        level = Level(alpha, sigma)
        with torch.enable_grad():
            u.requires_grad_()
            velocity = -(alpha * sigma) * self.predict(u, level, take(self.cond, rows)).v(level)
            if not velocity.requires_grad:
                raise ValueError(
                    "the flow's likelihood differentiates the predictor, but its output carries no gradient; remove torch.no_grad()."
                )
            products = [_product(velocity, u, moved(e, u)) for e in self.probes[:, rows]]
        return velocity.detach().cpu().double(), torch.stack(products, 1).cpu().double()

    def integrate(
        self, u: Float[Tensor, "b *x"], start: Tensor, stop: Tensor, divergence: Divergence, tolerance: float
    ) -> tuple[Float[Tensor, "b *x"], Float[Tensor, "p b"], Float[Tensor, "b"], Int[Tensor, "b"]]:
        """u at stop, the integrals of the products, the step errors, and the number of evaluations."""
        b, d, span = len(u), u[0].numel(), float(start - stop)
        results = [torch.empty_like(u), u.new_empty(b, len(self.probes)), u.new_empty(b), torch.empty(b, dtype=torch.long)]
        rows, half, step = torch.arange(b), start.expand(b), -torch.full((b,), min(span / 16, _LONGEST_STEP), dtype=torch.float64)
        state: State = (u, u.new_zeros(b, len(self.probes)))
        slopes = self.slope(rows, half, state)
        missed, calls = u.new_zeros(b), torch.ones(b, dtype=torch.long)
        while len(rows):
            step = torch.maximum(step, stop - half)
            new, error, last = dormand_prince(partial(self.slope, rows), half, state, slopes, step)
            after = torch.where(step == stop - half, stop, half + step)
            sigma = per_row(vp_scales(2 * after)[1], u)
            volume = divergence.trace(error[1].T)[0]
            size = torch.maximum((error[0] / sigma).flatten(1).square().mean(1).sqrt(), volume.abs() / d) / tolerance
            score = last[0] / sigma.square() - new[0]
            keep = size <= 1
            missed = missed + torch.where(keep, ((score * error[0]).flatten(1).sum(1) + volume).abs(), 0.0)
            calls, half = calls + 6, torch.where(keep, after, half)
            state, slopes = (
                tuple(torch.where(per_row(keep, a).bool(), a, c) for a, c in zip(*pair, strict=True))
                for pair in ((new, state), (last, slopes))
            )
            step = (step * (0.9 * size.pow(-0.2)).nan_to_num(0.2, posinf=5.0).clamp(0.2, 5.0)).clamp(min=-_LONGEST_STEP)
            if bool((~keep & (step > -1e-5 * span)).any()):
                raise ValueError(
                    f"the flow cannot be followed to a tolerance of {tolerance:g}: use a larger one; the predictor must not return NaN."
                )
            done = half == stop
            for result, value in zip(results, (*state, missed, calls), strict=True):
                result[rows[done]] = value[done]
            rows, half, step, missed, calls = (value[~done] for value in (rows, half, step, missed, calls))
            state, slopes = tuple(part[~done] for part in state), tuple(part[~done] for part in slopes)
        return results[0], results[1].T, results[2], results[3]


def _product(velocity: Tensor, u: Tensor, e: Tensor) -> Float[Tensor, "b"]:
    """e·J e of each row."""
    return (torch.autograd.grad(velocity, u, e, retain_graph=True)[0] * e).flatten(1).sum(1)


@runtime_checkable
class Dequantisation(Protocol):
    """Moves a value on a grid to a random place in its bin, and returns the log-density of the move."""

    def __call__(
        self, x0: Float[Tensor, "b *x"], bin_width: float, blur: float, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Float[Tensor, "b"]]:
        """x in the bins around x0, and log q(x | x0) in nats; `blur` is sigma/alpha of the level where the flow starts."""
        ...


@dataclass(frozen=True)
class Uniform:
    """x uniform in the bin. Theis et al. (2016), section 3.1, arXiv:1511.01844."""

    def __call__(
        self, x0: Float[Tensor, "b *x"], bin_width: float, blur: float, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Float[Tensor, "b"]]:
        """x0 + bin_width (u - 1/2), log q = -d log bin_width."""
        place = torch.special.ndtr(normal_like(x0, generator)) - 0.5
        return x0 + bin_width * place, torch.full_like(x0.flatten(1)[:, 0], -x0[0].numel() * math.log(bin_width))


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal noise truncated to the bin, by default the noise of the flow's first level, which the model was trained on.

    Zheng et al. (2023), truncated-normal dequantization, arXiv:2305.03935.

    Args:
        std: of the noise before truncation; sigma/alpha of the flow's first level by default.
    """

    std: float | None = None

    def __call__(
        self, x0: Float[Tensor, "b *x"], bin_width: float, blur: float, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Float[Tensor, "b"]]:
        """x0 + std ε with |ε| < bin_width / (2 std)."""
        std = blur if self.std is None else self.std
        edge = bin_width / (2 * std)
        inside = math.erf(edge / math.sqrt(2))
        quantile = 0.5 + inside * (torch.special.ndtr(normal_like(torch.empty_like(x0, device="cpu"), generator).double()) - 0.5)
        eps = moved(torch.special.ndtri(quantile).clamp(-edge, edge), x0)
        log_q = -0.5 * (eps.square() + math.log(2 * math.pi)) - math.log(std) - math.log(inside)
        return x0 + std * eps, log_q.flatten(1).sum(1)


@dataclass(frozen=True, slots=True)
class FlowBound:
    """An upper bound on the bits/dim of each example on a grid, by dequantisation."""

    total: Float[Tensor, "b"]
    probe_error: Float[Tensor, "b"]
    step_error: Float[Tensor, "b"]

    @property
    def standard_error(self) -> float:
        """Of the mean of `total` over the examples; includes the randomness of bins and probes. inf for a single example."""
        return float(standard_error(self.total))


@old_keywords(width="bin_width")
def bits_per_dim(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    schedule: Schedule,
    cond: CondLike | None = None,
    *,
    bin_width: float = 2 / 255,
    dequantise: Dequantisation = Uniform(),
    draws: int = 1,
    divergence: Divergence | None = None,
    tolerance: float = 1e-5,
    generator: Generator | None = None,
) -> FlowBound:
    """-log2 P(x0) / d <= -log2 (1/K Σ_k p(x_k) / q(x_k | x0)) / d, x_k drawn from the bins of x0, by the probability-flow ODE.

    A bound in expectation: E log of the mean is at most log of E. More draws tighten it (Burda et al. 2016, theorem 1, arXiv:1509.00519);
    with K > 1 the divergence must be exact, since noise from probes would be averaged inside the logarithm.

    Args:
        predict: the model.
        x0: data on a grid.
        schedule: as `flow_density` takes it. The noise of its first level should be about as large as a bin.
        cond: conditions, one row an example.
        bin_width: in units of x0: 2/255 for bytes in [-1, 1]; larger if the data have fewer grey levels.
        dequantise: `Uniform()` or `TruncatedNormal()`.
        draws: K.
        divergence: as `flow_density` takes it.
        tolerance: as `flow_density` takes it.
        generator: of the bins and the probes.

    Raises:
        ValueError: draws below 1, a bin width that is not positive, and the errors of `flow_density`.
    """
    if draws < 1 or not bin_width > 0:
        raise ValueError(f"draws must be at least 1 and bin_width positive, got {draws} and {bin_width}.")
    blur, d = math.exp(-float(finite_ends(schedule)[0].detach()) / 2), x0[0].numel()
    log_ratios, densities = [], []
    for _ in range(draws):
        x, log_q = dequantise(x0, bin_width, blur, generator)
        densities.append(flow_density(predict, x, schedule, cond, divergence=divergence, tolerance=tolerance, generator=generator))
        log_ratios.append(densities[-1].log_prob - log_q)
    shares = torch.stack(log_ratios).softmax(0)
    bits = lambda nats: nats / (d * math.log(2))  # noqa: E731
    return FlowBound(
        bits(math.log(draws) - torch.stack(log_ratios).logsumexp(0)),
        bits((shares * torch.stack([density.probe_error for density in densities])).square().sum(0).sqrt()),
        bits((shares * torch.stack([density.step_error for density in densities])).sum(0)),
    )
