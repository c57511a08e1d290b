"""The Gaussian processes between two levels.

With x_t = alpha_t x0 + sigma_t eps at every level and s the cleaner of two levels, everything a chain needs is a function of the two:

    q(x_t | x_s)     = N(alpha_ts x_s, sigma_ts²),  alpha_ts = alpha_t/alpha_s,  sigma_ts² = sigma_t² - alpha_ts² sigma_s²
    q(x_s | x_t, x0) = N(alpha_ts sigma_s²/sigma_t² x_t + alpha_s sigma_ts²/sigma_t² x0,  sigma_s² sigma_ts²/sigma_t²)

and sigma_ts²/sigma_t² = 1 - SNR_t/SNR_s = -expm1(log_snr_t - log_snr_s), which does not cancel for close levels. The betas of a respaced
chain follow from its levels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.deprecated import old_keywords
from sfumato.noise import Generator, normal_like
from sfumato.prediction import Prediction
from sfumato.runtime import moved
from sfumato.schedule import Level, Schedule

_LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Normal:
    """A Gaussian with a diagonal covariance; `log_variance` broadcasts against `mean` and is -inf for a point mass."""

    mean: Float[Tensor, "*x"]
    log_variance: Float[Tensor, "*v"]

    def entropy(self) -> Float[Tensor, "*v"]:
        """½ log(2πe variance) of each entry, in nats."""
        return 0.5 * (_LOG_2_PI + 1 + self.log_variance)

    def cross_entropy(self, other: "Normal") -> Float[Tensor, "*x"]:
        """-E log other(x) under self, of each entry, in nats."""
        return self.kl(other) + self.entropy()

    def sample(self, generator: Generator | None = None) -> Float[Tensor, "*x"]:
        """mean + exp(log_variance/2) eps: the reparameterisation. Kingma & Welling (2014), section 2.4, arXiv:1312.6114."""
        return self.mean + (self.log_variance / 2).exp() * normal_like(self.mean, generator)

    def log_prob(self, x: Float[Tensor, "*x"]) -> Float[Tensor, "*x"]:
        """Log-density of each entry, in nats."""
        return -0.5 * (_LOG_2_PI + self.log_variance + (x - self.mean).square() * (-self.log_variance).exp())

    def kl(self, other: "Normal") -> Float[Tensor, "*x"]:
        """KL(self ‖ other) of each entry, in nats."""
        distance = (self.mean - other.mean).square() * (-other.log_variance).exp()
        ratio = self.log_variance - other.log_variance
        return 0.5 * (distance + ratio.exp() - 1 - ratio)

    @old_keywords(width="bin_width")
    def binned_log_prob(self, x: Float[Tensor, "*x"], *, bin_width: float = 2 / 255) -> Float[Tensor, "*x"]:
        """Log-probability of each entry's bin x ± bin_width/2, in nats; the outermost bins of [-1, 1] are open outwards.

        The decoder of 8-bit data in [-1, 1]. Ho et al. (2020), eq. 13, arXiv:2006.11239.
        """
        scale = (-self.log_variance / 2).exp()
        upper, lower = (x - self.mean + bin_width / 2) * scale, (x - self.mean - bin_width / 2) * scale
        top, bottom = x > 1 - bin_width / 2, x < -1 + bin_width / 2
        below, above = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
        # log(Φ(b) - Φ(a)) in the tail where both are small, without cancellation.
        flip = lower > 0
        far, near = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
        inside = log_near + torch.log(-torch.expm1((log_far - log_near).clamp(max=-1e-12)))
        return torch.where(top & bottom, torch.zeros_like(inside), torch.where(bottom, below, torch.where(top, above, inside)))


def marginal(x0: Float[Tensor, "*x"], level: Level) -> Normal:
    """q(x_t | x0) = N(alpha x0, sigma²). Ho et al. (2020), eq. 4, arXiv:2006.11239.

    Raises:
        ValueError: a level that does not broadcast against x0; the same for `transition` and `posterior`.
    """
    _refuse_misfit(x0, level)
    return Normal(level.alpha * x0, 2 * level.sigma.log())


def sde(schedule: Schedule, t: Float[Tensor, "*t"]) -> tuple[Float[Tensor, "*t"], Float[Tensor, "*t"]]:
    """(f, g²) of the process dx = f x dt + g dw whose marginals are the schedule's.

    f = d log alpha/dt and g² = dsigma²/dt - 2 f sigma²; the derivatives of the schedule's curve are automatic.

    Reference: Kingma et al. (2021), eq. 2 and appendix A; Song et al. (2021), eq. 5, arXiv:2011.13456.
    """
    t = torch.as_tensor(t, dtype=torch.float64).detach()
    with torch.enable_grad():
        leaf = t.clone().requires_grad_()
        level = schedule.level(leaf)
        (f,) = torch.autograd.grad((level.alpha.log() + 0 * leaf).sum(), leaf, retain_graph=True)
        (rise,) = torch.autograd.grad((level.sigma.square() + 0 * leaf).sum(), leaf)
    return f, rise - 2 * f * level.sigma.detach().square()


def flow_velocity(
    prediction: Prediction, x_t: Float[Tensor, "*x"], level: Level, f: Tensor | float, g_squared: Tensor | float
) -> Float[Tensor, "*x"]:
    """dx/dt = f x - ½ g² ∇ log p(x): the probability flow, with the marginals of `sde`. Song et al. (2021), eq. 13, arXiv:2011.13456."""
    return f * x_t - 0.5 * g_squared * prediction.score(level)


def reverse_drift(
    prediction: Prediction, x_t: Float[Tensor, "*x"], level: Level, f: Tensor | float, g_squared: Tensor | float
) -> Float[Tensor, "*x"]:
    """f x - g² ∇ log p(x): the drift of the process run backwards in time. Anderson (1982); Song et al. (2021), eq. 6."""
    return f * x_t - g_squared * prediction.score(level)


def transition(x_s: Float[Tensor, "*x"], s: Level, t: Level) -> Normal:
    """q(x_t | x_s) from a cleaner s to a noisier t: N(alpha_ts x_s, sigma_ts²). Kingma et al. (2021), eq. 20, arXiv:2107.00630."""
    _refuse_misfit(x_s, s, t)
    return Normal(t.alpha / s.alpha * x_s, transition_log_variance(s, t))


def transition_log_variance(s: Level, t: Level) -> Tensor:
    """log sigma_ts² = log(sigma_t² - alpha_ts² sigma_s²): log beta of the step from s to t."""
    return 2 * t.sigma.log() + _noise_share(t, s).log()


def posterior(x0: Float[Tensor, "*x"], x_t: Float[Tensor, "*x"], t: Level, s: Level) -> Normal:
    """q(x_s | x_t, x0), the step back from t to the cleaner s. Ho et al. (2020), eqs. 6 and 7, arXiv:2006.11239."""
    _refuse_misfit(x_t, t, s)
    _refuse_misfit(x0, t, s)
    share = _noise_share(t, s)
    mean = (t.alpha / s.alpha * (s.sigma / t.sigma).square()) * x_t + (s.alpha * share) * x0
    return Normal(mean, posterior_log_variance(t, s))


def posterior_log_variance(t: Level, s: Level) -> Tensor:
    """log(sigma_s² sigma_ts²/sigma_t²): log β̃ of the step from t back to s; -inf if s is the data."""
    return 2 * s.sigma.log() + _noise_share(t, s).log()


def reverse(
    prediction: Prediction,
    x_t: Float[Tensor, "*x"],
    t: Level,
    s: Level,
    *,
    variance: str | Tensor = "small",
    last_log_variance: Tensor | None = None,
) -> Normal:
    """p(x_s | x_t) of a model: the posterior at the predicted x0, with a fixed or learned variance.

    Args:
        prediction: at x_t.
        x_t: the noisy data.
        t: its level.
        s: the cleaner level.
        variance: "small" (β̃), "large" (β), or "learned" (between the two in their logarithms); or the log variance itself. Ho et al.
            (2020), section 3.2; Nichol & Dhariwal (2021), eq. 15, arXiv:2102.09672.
        last_log_variance: replaces log β̃, and log β for "large", if s is the data, where log β̃ is -inf; the papers use the log β̃ of the
        step before.

    Raises:
        ValueError: an unknown variance, or a learned one that the prediction does not have.
    """
    small, large = posterior_log_variance(t, s), transition_log_variance(s, t)
    is_last = s.sigma == 0
    if last_log_variance is not None:
        small = torch.where(is_last, last_log_variance, small)
    mean = posterior(prediction.x0, x_t, t, s).mean
    if isinstance(variance, Tensor):
        return Normal(mean, variance)
    if variance == "small":
        return Normal(mean, small)
    if variance == "large":
        return Normal(mean, large if last_log_variance is None else torch.where(is_last, last_log_variance, large))
    if variance != "learned":
        raise ValueError(f'variance must be "small", "large" or "learned", got "{variance}".')
    if prediction.variance_fraction is None:
        raise ValueError('this model has not learned a variance; use "small" or "large", or train with variance="learned".')
    return Normal(mean, torch.lerp(moved(small, x_t), moved(large, x_t), prediction.variance_fraction))


def _refuse_misfit(x: Tensor, *levels: Level) -> None:
    """Refuses levels that would change the shape of x."""
    for level in levels:
        shape = level.alpha.shape
        if len(shape) > x.ndim or any(n not in (1, m) for n, m in zip(reversed(shape), reversed(x.shape), strict=False)):
            raise ValueError(
                f"a level of shape {tuple(shape)} does not fit x of shape {tuple(x.shape)}; use schedule.level(t, like=x), one t a row."
            )


def _noise_share(t: Level, s: Level) -> Tensor:
    """sigma_ts²/sigma_t²: the share of x_t's noise variance that came after s."""
    return -torch.expm1(t.log_snr - s.log_snr)
