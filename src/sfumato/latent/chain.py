"""A diffusion model as a hierarchical VAE: latents of the size of x, and an encoder without parameters.

    q(z_T | x) Π q(z_k | z_{k+1}, x)      p(z_T) Π p(z_k | z_{k+1}) p(x | z_1)

with z_k = x_t at the k-th level of a chain: the encoder is the posterior of the process between two levels (Ho et al. 2020, eq. 6), the
decoder the model's reverse step. `latent.bound` on it, with the same code as for a VAE, gives the diffusion bound of `likelihood.vlb`.
Luo (2022), section 2.5, arXiv:2208.11970.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import CondLike, Predictor
from sfumato.deprecated import old_keywords
from sfumato.latent.bound import LatentDraw, Trace
from sfumato.noise import Generator
from sfumato.process import Normal, marginal, posterior, posterior_log_variance, reverse
from sfumato.sampling.spacing import grid, uniform
from sfumato.schedule import Discrete, Level, Schedule


@dataclass(frozen=True)
class DiffusionVAE:
    """A predictor along a chain of levels as a hierarchical VAE; made by `as_hierarchical_vae`."""

    predict: Predictor
    levels: Sequence[Level]
    cond: CondLike | None
    variance: str
    bin_width: float
    jumps: bool

    @property
    def depth(self) -> int:
        """T: the number of levels with noise."""
        return len(self.levels) - 1

    def trace(self, x: Float[Tensor, "b *x"], generator: Generator | None = None) -> Trace:
        """Draws z_T to z_1: the fixed encoder's law and the model's at each level, then p(x | z_1) on the grid of x's values."""
        top = self.levels[0]
        q, p = marginal(x, top), Normal(torch.zeros_like(x), (top.alpha.square() + top.sigma.square()).log())
        latents = [LatentDraw(z := q.sample(generator), q, p)]
        for t, s in zip(self.levels[:-2], self.levels[1:-1], strict=True):
            q, p = posterior(x, z, t, s), self._reverse(z, t, s)
            z = marginal(x, s).sample(generator) if self.jumps else q.sample(generator)
            latents.append(LatentDraw(z, q, p))
        decoder = self._reverse(z, self.levels[-2], self.levels[-1])
        return Trace(latents, decoder.binned_log_prob(x, bin_width=self.bin_width).flatten(1).sum(1), not self.jumps)

    def sample(self, z: Float[Tensor, "b *x"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """From z_T ~ p(z_T) through the decoder to the mean of p(x | z_1): ancestral sampling."""
        for t, s in zip(self.levels[:-2], self.levels[1:-1], strict=True):
            z = self._reverse(z, t, s).sample(generator)
        return self._reverse(z, self.levels[-2], self.levels[-1]).mean

    def _reverse(self, z: Tensor, t: Level, s: Level) -> Normal:
        last = posterior_log_variance(self.levels[-3], self.levels[-2])
        return reverse(self.predict(z, t, self.cond), z, t, s, variance=self.variance, last_log_variance=last)


@old_keywords(width="bin_width")
def as_hierarchical_vae(
    predict: Predictor,
    schedule: Schedule,
    cond: CondLike | None = None,
    *,
    steps: int | None = None,
    variance: str = "small",
    bin_width: float = 2 / 255,
    jumps: bool = False,
) -> DiffusionVAE:
    """A diffusion model as a hierarchical VAE, for `latent.bound`, `importance_bits` and `level_use`.

    Args:
        predict: the diffusion model.
        schedule: a chain, or a continuous schedule, which is cut into `steps` - 1 equal times and a last step from t = 0 to the data.
        cond: conditions, one row an example.
        steps: T; the length of the chain by default.
        variance: of the decoder's steps: "small", "large" or "learned".
        bin_width: distance of neighbouring values of data in [-1, 1]: 2/255 for bytes.
        jumps: draw each z_k directly from q(z_k | x): the mean of every divergence is unchanged, and the noise comes in the order of
        `likelihood.vlb`; an importance bound needs jumps=False.

    Raises:
        ValueError: fewer than two steps, no steps for a continuous schedule, or more than the chain has.
    """
    is_chain = isinstance(schedule, Discrete)
    steps = len(schedule) if steps is None and is_chain else steps
    if steps is None or steps < 2:
        raise ValueError(f"a hierarchical VAE of diffusion needs at least two steps, got {steps}; pass steps=….")
    if is_chain:
        levels = grid(schedule, steps, spacing=uniform)
    else:
        one = torch.ones((), dtype=torch.float64)
        levels = [*grid(schedule, steps - 1, spacing=uniform), Level(one, 0 * one)]
    return DiffusionVAE(predict, levels, cond, variance, bin_width, jumps)
