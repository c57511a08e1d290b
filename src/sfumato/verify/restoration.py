"""Rows on restoration: operators and their decompositions, the methods on Gaussians, the weights of particles."""

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sfumato import oracle, restoration
from sfumato.restoration.moments import Full, Krylov
from sfumato.restoration.observed import at_ratios, differentiable, geometric
from sfumato.restoration.spectral import Spectrum
from sfumato.schedule import Level, flow_scales, ve_scales, vp_scales
from sfumato.verify.ledger import row, standard_errors, worst

_NOISE = 0.3
_MODES: dict[str, Literal["wrap", "constant", "reflect", "edge"]] = {  # NumPy's names
    "circular": "wrap",
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
}


def _f64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


_H = _f64([1.0, 0.5, 0.0, -0.3], [0.0, 2.0, 1.0, 0.0])
_COVARIANCE = _f64([0.5, 0.2, 0.0, 0.1], [0.2, 0.4, 0.1, 0.0], [0.0, 0.1, 0.9, -0.2], [0.1, 0.0, -0.2, 0.3])
_gaussian = oracle.Gaussian(torch.tensor([0.5, -1.0, 0.0, 0.3], dtype=torch.float64), _COVARIANCE)
_Y = _f64([0.4, -1.1])
_mixture = oracle.GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    _f64([-1.0, 0.0, 0.5], [1.0, 0.5, -0.5], [0.0, -1.0, 0.0]),
    _f64([0.1, 0.3, 0.05], [0.2, 0.1, 0.1], [0.05, 0.1, 0.4]),
)


def _kernels() -> list[Tensor]:
    return [torch.rand(size) for size in ((3, 5), (4, 2), (3, 4))]


def _linears() -> list[restoration.Linear]:
    """Every kind of operator, on pictures that are not square, of 1 and 3 channels."""
    mask = torch.rand(6, 8) > 0.4
    mask[0, 0] = True
    kernels = _kernels()
    return [
        *(
            operator.at((channels, 6, 8))
            for channels in (1, 3)
            for operator in (
                restoration.Mask(mask, shape=(channels, 6, 8)),
                restoration.AveragePool(2),
                restoration.Bicubic(2),
                *(restoration.Blur(kernel) for kernel in kernels),
                restoration.Blur(kernels[0], padding="zeros"),
                restoration.Blur(kernels[1][:, :1] * kernels[1][:1], padding="reflect"),
            )
        ),
        (restoration.AveragePool(2) @ restoration.Grey()).at((3, 6, 8)),
        restoration.Hadamard(20, (2, 4, 4)).at((2, 4, 4)),
        restoration.Gaussian(20, (3, 4, 5)).at((3, 4, 5)),
        restoration.Matrix(torch.randn(9, 3) @ torch.randn(3, 7)).at((7,)),
    ]


def _scores(x: Tensor, law: oracle.GaussianMixture) -> float:
    """Standard errors of the mean and covariance of draws of a Gaussian."""
    apart = x - law.mean
    outer = (apart[:, :, None] * apart[:, None]).flatten(1)
    return max(standard_errors(x, law.mean), standard_errors(outer, law.covariance.flatten()))


@row(
    "restoration-svd",
    "H = U S Vᵀ, VᵀV = I, UᵀU = I",
    notes="004 DDRM; Kawar et al. 2022, section 3.1 and appendix D",
    function="restoration.Operator.svd",
    tolerance=1e-6,
)
def check_svd() -> float:
    """Largest difference to the matrix (relative), and of VᵀV and UᵀU to I, of masks, pooling, bicubic, blurs, grey, random projections."""
    errors = []
    for linear in _linears():
        svd, h = linear.svd, linear.matrix
        assert svd is not None
        v, u = svd.from_v(torch.eye(linear.d)).T, svd.from_u(torch.eye(linear.d)).T[:, svd.seen]
        errors += [worst(u * svd.singular[svd.seen] @ v[:, svd.seen].T, h), worst(v.T @ v, torch.eye(linear.d))]
        errors += [
            worst(u.T @ u, torch.eye(u.shape[1])),
            worst(svd.to_v(torch.eye(linear.d)), v),
            worst(svd.to_u(h.T)[:, svd.seen], h.T @ u),
        ]
    return max(errors)


@row(
    "restoration-adjoint",
    "<H x, y> = <x, Hᵀ y>",
    notes="004 DDRM",
    function="restoration.Operator.adjoint",
    tolerance=1e-12,
)
def check_adjoint() -> float:
    """Largest difference of Hᵀ, column by column, to the transpose of H, column by column."""
    return max(worst(linear.adjoint(torch.eye(linear.m)), linear.matrix) for linear in _linears())


@row(
    "restoration-pseudo-inverse",
    "H H⁺ H = H, H⁺ H H⁺ = H⁺, (H H⁺)ᵀ = H H⁺, (H⁺ H)ᵀ = H⁺ H",
    notes="004 DDRM; Penrose 1955",
    function="restoration.Linear.solve",
    tolerance=1e-6,
)
def check_pseudo_inverse() -> float:
    """Largest relative error of the four conditions."""
    errors = []
    for linear in _linears():
        h, inverse = linear.matrix, linear.adjoint(linear.solve(torch.eye(linear.m), 1.0, 0.0)).T
        errors += [worst(h @ inverse @ h, h), worst(inverse @ h @ inverse, inverse)]
        errors += [worst(h @ inverse, (h @ inverse).T), worst(inverse @ h, (inverse @ h).T)]
    return max(errors)


@row(
    "restoration-blur",
    "(k * x)[i] = Σ_j k[j] x[i - j + size // 2], beyond the border by the padding",
    notes="004 DDRM, deblurring",
    function="restoration.Blur",
    tolerance=1e-12,
)
def check_blur() -> float:
    """Largest difference to that sum, term by term on a plane padded by NumPy, four paddings, odd and even kernels, 1 and 3 channels."""
    errors = []
    for padding, mode in _MODES.items():
        for kernel in _kernels():
            sides = [(size - 1 - size // 2, size // 2) for size in kernel.shape]
            for channels in (1, 3):
                x, direct = torch.randn(channels, 6, 8), torch.zeros(channels, 6, 8)
                padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), *sides], mode=mode))
                for j in np.ndindex(*kernel.shape):
                    top, left = (size - 1 - at for size, at in zip(kernel.shape, j, strict=True))
                    direct += kernel[j] * padded[:, top : top + 6, left : left + 8]
                errors.append(worst(restoration.Blur(kernel, padding=padding).forward(x[None])[0], direct))
    return max(errors)


@row(
    "restoration-tweedie-covariance",
    "Cov[x0 | x_t] = (σ²/α) ∂x̂0/∂x_t",
    notes="004 DDRM; Boys et al. 2023, eq. 8",
    function="GaussianMixture.covariance_given, restoration.MomentMatching",
    tolerance=1e-9,
)
def check_covariance() -> float:
    """Largest difference of the mixture's covariance to the Jacobian of its x0 by automatic differentiation, three scalings."""
    errors, x_t = [], torch.randn(5, 3)
    for scales in (vp_scales, ve_scales, flow_scales):
        for log_snr in (-4.0, 0.0, 4.0):
            level = Level(*scales(torch.tensor(log_snr)))
            _, pull = differentiable(_mixture, x_t, level)
            jacobian = torch.stack([pull(torch.eye(3)[i].expand(5, 3)) for i in range(3)], 1)
            errors.append(worst(level.sigma**2 / level.alpha * jacobian, _mixture.covariance_given(x_t, level)))
    return max(errors)


def _mean_given_both(law: oracle.GaussianMixture, x_t: Tensor, level: Level) -> Tensor:
    """E[x0 | x_t, y], by conditioning on x_t and y at once."""
    both = torch.cat([float(level.alpha) * torch.eye(4), _H])
    noise = torch.tensor([float(level.sigma)] * 4 + [_NOISE] * 2)
    return torch.stack([law.given(both, torch.cat([x, _Y[0]]), noise).mean for x in x_t])


def _observed(count: int) -> restoration.Observed:
    return restoration.observe(_Y.repeat(count, 1), restoration.Matrix(_H), _NOISE)


@row(
    "restoration-pigdm",
    "E[x0 | x_t, y] = x̂0 + (σ²/α) Jᵀ Hᵀ (r² H Hᵀ + σ_y² I)⁻¹ (y - H x̂0) where x0 ~ N(μ, s² I)",
    notes="004 DDRM; Song et al. 2023 (PiGDM), eqs. 7 to 9",
    function="restoration.PiGDM",
    tolerance=1e-9,
)
def check_pigdm() -> float:
    """Largest difference to the conditional mean given x_t and y, three levels, two widths of isotropic data."""
    errors, x_t = [], torch.randn(5, 4)
    for std in (0.5, 2.0):
        law = oracle.Gaussian(torch.linspace(-1, 1, 4), std**2)
        for log_snr in (-3.0, 0.0, 3.0):
            level = Level(*vp_scales(torch.tensor(log_snr)))
            found = restoration.PiGDM(data_std=std).predictor(law, _observed(5))(x_t, level)
            errors.append(worst(found.x0, _mean_given_both(law, x_t, level)))
    return max(errors)


@row(
    "restoration-moment-matching",
    "E[x0 | x_t, y] = x̂0 + C Hᵀ (H C Hᵀ + σ_y² I)⁻¹ (y - H x̂0), C = Cov[x0 | x_t], for any Gaussian x0",
    notes="004 DDRM; Boys et al. 2023, eq. 12",
    function="restoration.MomentMatching",
    tolerance=2e-3,
)
def check_moment_matching() -> float:
    """Largest difference to the conditional mean given x_t and y: C as a matrix (held to 1e-6), and by products alone (to 2e-3)."""
    errors, x_t = [], torch.randn(5, 4)
    for log_snr in (-3.0, 0.0, 3.0):
        level, observed = Level(*vp_scales(torch.tensor(log_snr))), _observed(5)
        x0, truth = _gaussian(x_t, level).x0, _mean_given_both(_gaussian, x_t, level)
        _, pull = differentiable(_gaussian, x_t, level)
        full = Full(_gaussian.covariance_given(x_t, level), observed).gain(observed.residual(x0))
        krylov = Krylov(lambda v, pull=pull, level=level: level.sigma**2 / level.alpha * pull(v), observed, 20)
        errors += [2000 * worst(x0 + full, truth), worst(x0 + krylov.gain(observed.residual(x0)), truth)]
    return max(errors)


@row(
    "restoration-gaussian-posterior",
    "x0 ~ N(x̂0, C | y), x_s ~ q(x_s | x_t, x0): p(x0 | y) at any number of steps for Gaussian data",
    notes="004 DDRM",
    function="restoration.MomentMatching, sf.restore",
    tolerance=4.5,
)
def check_gaussian_posterior() -> float:
    """Standard errors of mean and covariance of 20,000 draws in 4 steps, for DDPM's noise, fresh noise, and between."""
    law, errors = _gaussian.given(_H, _Y[0], _NOISE), []
    for renoise in (0.0, 0.5, 1.0):
        generator, method = torch.Generator().manual_seed(1), restoration.MomentMatching(renoise=renoise)
        levels = at_ratios([30.0, 0.6, 0.5, 0.42])
        x = restoration.restore(
            _gaussian, _Y, restoration.Matrix(_H), _NOISE, method=method, levels=levels, count=20000, generator=generator
        )
        errors.append(_scores(x[:, 0], law))
    return max(errors)


@row(
    "restoration-two-mmse",
    "E|x - x_true|² = 2 MMSE for a draw x of p(x0 | y)",
    notes="004 DDRM; Blau & Michaeli 2018",
    function="sf.restore",
    tolerance=4.5,
)
def check_two_mmse() -> float:
    """Standard errors over 6,000 true x0, each with its own y."""
    generator = torch.Generator().manual_seed(2)
    truth = _gaussian.sample(6000, generator)[0]
    y = truth @ _H.T + _NOISE * torch.randn(6000, 2, generator=generator)
    x = restoration.restore(
        _gaussian, y, restoration.Matrix(_H), _NOISE, count=1, levels=restoration.default_levels(5), generator=generator
    )
    return standard_errors((x[0] - truth).square().sum(1), 2 * _gaussian.given(_H, y[0], _NOISE).covariance.trace())


@row(
    "ddrm-marginal",
    "q(x_s | x0) = N(α_s x0, σ_s²), y seen better than the level, worse, or not at all",
    notes="004 DDRM; Kawar et al. 2022, proposition 3.1",
    function="restoration.DDRM",
    tolerance=4.5,
)
def check_ddrm_marginal() -> float:
    """Standard errors of mean and variance after a step whose predictor knows x0, of 40,000 rows, each with noise of y of its own."""
    count, (t, s) = 40000, at_ratios([1.0, 0.8])[:2]
    one = _f64([0.7, -0.4, 0.2, 1.1])
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    h = torch.diag(torch.tensor([2.0, 0.5, 0.05])) @ rotation[:, :3].T  # σ_y/s is 0.1, 0.4 and 4
    y, x_t = one @ h.T + 0.2 * torch.randn(count, 3), t.alpha * one + t.sigma * torch.randn(count, 4)
    observed = restoration.observe(y, restoration.Matrix(h), 0.2)
    errors = []
    for eta, eta_b in ((0.85, 1.0), (0.3, 0.5)):
        step = restoration.DDRM(eta=eta, eta_b=eta_b).step(observed, None)
        x_s, _ = step(oracle.EmpiricalDistribution(one), x_t, t, s, None, None)
        errors += [standard_errors(x_s, s.alpha * one[0]), standard_errors((x_s - s.alpha * one[0]).square(), s.sigma.square())]
    return max(errors)


@row(
    "ddrm-recursion",
    "on x0 ~ N(0, v) DDRM is a linear recursion of mean and variance in each coordinate",
    notes="004 DDRM; Kawar et al. 2022, eqs. 6 to 8",
    function="restoration.DDRM",
    tolerance=4.5,
)
def check_ddrm_recursion() -> float:
    """Standard errors of the whole chain's mean and variance, 20,000 draws of 12 steps, to the recursion by hand; s = 2, .3 and none."""
    v, noise, eta, count = 0.8, 0.25, 0.85, 20000
    singular, seen = (2.0, 0.3, 0.0), _f64([0.9, -0.2])
    h = torch.diag(torch.tensor(singular))[:2]
    ratios = [*geometric(8.0, 0.05, 12), 0.0]
    x = restoration.restore(
        oracle.Gaussian(torch.zeros(3), v), seen, restoration.Matrix(h), noise, method=restoration.DDRM(eta=eta),
        levels=at_ratios(ratios[:-1]), count=count, generator=torch.Generator().manual_seed(3),
    )[:, 0]  # fmt: skip
    means, variances = [], []
    for i, s in enumerate(singular):
        spread, bar = (noise / s, float(seen[0, i]) / s) if s else (math.inf, 0.0)
        mean, variance = (bar, ratios[0] ** 2 - spread**2) if spread <= ratios[0] else (0.0, ratios[0] ** 2)
        for a, b in pairwise(ratios):
            shrink, kept = v / (v + a * a), math.sqrt(1 - eta * eta)  # x̂0 = shrink · x
            if not s:
                slope, offset, added = shrink + kept * b * (1 - shrink) / a, 0.0, (eta * b) ** 2
            elif spread > b:
                slope, offset, added = shrink * (1 - kept * b / spread), kept * b * bar / spread, (eta * b) ** 2
            else:
                slope, offset, added = 0.0, bar, b * b - spread**2
            mean, variance = slope * mean + offset, slope**2 * variance + added
        means.append(mean)
        variances.append(variance)
    mean, variance = torch.tensor(means), torch.tensor(variances)
    return max(standard_errors(x, mean), standard_errors((x - mean).square(), variance))


@row(
    "restoration-noiseless",
    "σ_y = 0: H x = y",
    notes="004 DDRM; Kawar et al. 2022; Wang et al. 2023 (DDNM), eq. 12",
    function="restoration.DDRM, restoration.DDNM, restoration.RePaint, restoration.MomentMatching",
    tolerance=1e-6,
)
def check_noiseless() -> float:
    """Largest difference of H x to y at the end."""
    errors = []
    methods = (restoration.DDRM(), restoration.DDNM(), restoration.RePaint(resamplings=2), restoration.MomentMatching())
    for method in methods:
        x = restoration.restore(_gaussian, _Y, restoration.Matrix(_H), 0.0, method=method, count=5, levels=method.levels(8))
        errors.append(worst(x[:, 0] @ _H.T, _Y.expand(5, 2)))
    return max(errors)


@row(
    "restoration-split-gibbs",
    "x ~ N(z, ρ²) p(y | x), z ~ p(z) N(x; z, ρ²) leaves p(z | y) as it is, with the noise σ_y² - ρ² s² in the first",
    notes="004 DDRM; Vono et al. 2019; Wu et al. 2024",
    function="restoration.SplitGibbs",
    tolerance=4.5,
)
def check_split_gibbs() -> float:
    """Standard errors of mean and covariance of 20,000 exact posterior draws after one round, its chain of 60 steps."""
    law, generator = _gaussian.given(_H, _Y[0], _NOISE), torch.Generator().manual_seed(4)
    z = law.sample(20000, generator)[0]
    method, rho = restoration.SplitGibbs(inner=60), 0.12
    with torch.no_grad():
        x = method.near(z, rho, Spectrum.of(_observed(20000)), generator)
        return _scores(method.denoised(_gaussian, x, rho, None, generator), law)


def _high(steps: int) -> list[Level]:
    """Levels from so much noise that x_T is plain noise, fine where the components part."""
    return at_ratios([*geometric(3000.0, 5.0, 4), *geometric(3.0, 0.1, steps)])


@row(
    "restoration-particles",
    "log Ẑ = log p(y), equal weights: the twist is exact for Gaussian data",
    notes="004 DDRM; Wu et al. 2023, section 3",
    function="restoration.TwistedSMC",
    tolerance=0.02,
)
def check_particles() -> float:
    """|log Ẑ - log p(y)| and the share of particles lost, at 6 steps of 2,000 particles, C as a matrix and C = r² I."""
    round_law = oracle.Gaussian(torch.linspace(-1, 1, 4), 0.49)
    errors = []
    for law, predict in ((_gaussian, _gaussian), (round_law, lambda x_t, level, cond=None: round_law(x_t, level, cond))):
        method, generator = restoration.TwistedSMC(particles=2000), torch.Generator().manual_seed(5)
        found = restoration.draw(predict, _Y, restoration.Matrix(_H), _NOISE, method=method, count=1, levels=_high(2), generator=generator)
        assert found.log_evidence is not None
        assert found.ess is not None
        errors.append(abs(float(found.log_evidence) - float(law.observed(_H, _NOISE).log_prob(_Y))))
        if law is _gaussian:
            errors.append(1 - float(found.ess.min()) / 2000)
    return max(errors)


@row(
    "restoration-evidence",
    "E[Ẑ] = p(y)",
    notes="004 DDRM; Wu et al. 2023, proposition 1",
    function="restoration.TwistedSMC",
    tolerance=4.5,
)
def check_evidence() -> float:
    """Standard errors over 16 runs of 16 particles on a mixture."""
    h = _f64([1.0, 0.5, 0.0], [0.0, 0.3, 1.0])
    y, generator = _f64([0.6, -0.1]), torch.Generator().manual_seed(6)
    method = restoration.TwistedSMC(particles=16, threshold=0.9)
    found = restoration.draw(
        _mixture, y.repeat(16, 1), restoration.Matrix(h), _NOISE, method=method, count=1, levels=_high(30), generator=generator
    )
    assert found.log_evidence is not None
    return standard_errors((found.log_evidence - _mixture.observed(h, _NOISE).log_prob(y)).exp(), 1.0)
