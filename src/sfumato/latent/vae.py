"""Variational autoencoders: z_T → … → z_1 → x with a learned encoder in the other direction; with one latent, the plain VAE.

    p(z_T) = N(0, I),  p(z_k | z_{k+1}),  p(x | z_1)      and      q(z_1 | x),  q(z_{k+1} | z_k)

Every conditional is a network that outputs mean and log variance (`as_normal`), except p(x | z_1), which is read by a `Likelihood`. Lists
of latents start with the topmost. Kingma & Welling (2014), arXiv:1312.6114; Luo (2022), section 2.4, arXiv:2208.11970.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.latent.bound import LatentDraw, Trace
from sfumato.latent.likelihood import Likelihood
from sfumato.noise import Generator
from sfumato.process import Normal

Network = Callable[[Tensor], Tensor]


@runtime_checkable
class LatentModel(Protocol):
    """What the functions of this module need of a model: encode, decode, and draw from the topmost prior."""

    def encode(self, x: Tensor, generator: Generator | None = None, *, temperature: float = 0.0) -> list[Tensor]:
        """The latents of x, the topmost first: at temperature 0 the encoder's means, at 1 a draw."""
        ...

    def decode(self, latents: Sequence[Tensor | None], generator: Generator | None = None, *, temperature: float = 1.0) -> Tensor:
        """The decoder's output; latents that are None are drawn from their priors with `temperature` times the standard deviation."""
        ...

    def top(self, count: int, generator: Generator | None = None, *, temperature: float = 1.0) -> Tensor:
        """Draws of the topmost latent from its prior, with `temperature` times the standard deviation."""
        ...

    @property
    def depth(self) -> int:
        """The number of latents."""
        ...

    @property
    def likelihood(self) -> Likelihood:
        """The law of x given the decoder's output."""
        ...


def as_normal(output: Float[Tensor, "b *output"]) -> Normal:
    """A network's output as mean and log variance (its two halves along axis 1); the log variance is clamped to [-30, 20]."""
    mean, log_variance = output.chunk(2, dim=1)
    return Normal(mean, log_variance.clamp(-30, 20))


class VAE(nn.Module):
    """A Markov chain of latents with a Markov encoder."""

    def __init__(
        self, encoders: Sequence[nn.Module], decoders: Sequence[nn.Module], likelihood: Likelihood, latent: tuple[int, ...]
    ) -> None:
        """Combines the networks of T levels.

        Args:
            encoders: for z_1 (from x), z_2 (from z_1), …: each returns mean and log variance.
            decoders: for x (from z_1), z_1 (from z_2), …: the first is read by the likelihood, the others return mean and log variance.
            likelihood: of x.
            latent: shape of one z_T.

        Raises:
            ValueError: no level, or different numbers of encoders and decoders.
        """
        super().__init__()
        if not encoders or len(encoders) != len(decoders):
            raise ValueError(f"a VAE needs as many encoders as decoders, at least one of each, got {len(encoders)} and {len(decoders)}.")
        self.net = nn.ModuleDict({"encoders": nn.ModuleList(encoders), "decoders": nn.ModuleList(decoders)})
        self.likelihood, self.latent = likelihood, latent

    @property
    def depth(self) -> int:
        """T."""
        return len(self._list("encoders"))

    def trace(self, x: Float[Tensor, "b *x"], generator: Generator | None = None) -> Trace:
        """Draws z_1 to z_T from the encoders; the prior of each is conditioned on the draw above it.

        Raises:
            ValueError: an x or a latent that does not fit its network.
        """
        laws, zs, below = [], [], x
        for encoder in self._list("encoders"):
            laws.append(as_normal(encoder(below)))
            zs.append(below := laws[-1].sample(generator))
        latents = []
        for k in reversed(range(self.depth)):
            at_top = k == self.depth - 1
            p = _standard(zs[k]) if at_top else self._prior(k, zs[k + 1])
            if p.mean.shape != zs[k].shape:
                raise ValueError(
                    f"latent {k + 1} does not fit: its encoder gives shape {tuple(zs[k].shape[1:])}, its decoder "
                    f"{tuple(p.mean.shape[1:])}; build both for the same shape."
                )
            latents.append(LatentDraw(zs[k], laws[k], p, is_shared=at_top))
        return Trace(latents, self.likelihood.log_prob(self._list("decoders")[0](zs[0]), x))

    def encode(self, x: Float[Tensor, "b *x"], generator: Generator | None = None, *, temperature: float = 0.0) -> list[Tensor]:
        """The latents of x, z_T first: the encoders' means, or draws with `temperature` times the standard deviation."""
        zs, below = [], x
        for encoder in self._list("encoders"):
            zs.append(below := draw(as_normal(encoder(below)), generator, temperature))
        return zs[::-1]

    def decode(
        self, latents: Sequence[Tensor | None], generator: Generator | None = None, *, temperature: float = 1.0
    ) -> Float[Tensor, "b *output"]:
        """The decoder's output. The chain is Markov, so the lowest given latent determines it; those below are drawn.

        Raises:
            ValueError: the number of latents is not the number of levels, the topmost is None, or one does not fit.
        """
        refuse_count(latents, self.depth)
        z = None
        for k, given in zip(reversed(range(self.depth)), latents, strict=True):
            if given is not None:
                z = given
            elif z is not None:
                z = draw(self._prior(k, z), generator, temperature)
        assert z is not None
        return self._list("decoders")[0](z)

    def top(self, count: int, generator: Generator | None = None, *, temperature: float = 1.0) -> Float[Tensor, "n *z"]:
        """z_T ~ N(0, temperature² I)."""
        return draw(_standard(next(self.parameters()).new_empty(count, *self.latent)), generator, temperature)

    def _prior(self, k: int, above: Tensor) -> Normal:
        return as_normal(self._list("decoders")[k + 1](above))

    def _list(self, name: str) -> nn.ModuleList:
        part = self.net[name]
        assert isinstance(part, nn.ModuleList)
        return part


def draw(law: Normal, generator: Generator | None, temperature: float) -> Tensor:
    """A draw with `temperature` times the standard deviation; at 0, the mean."""
    if temperature == 0:
        return law.mean
    return Normal(law.mean, law.log_variance + 2 * math.log(temperature)).sample(generator)


def _standard(like: Tensor) -> Normal:
    return Normal(torch.zeros_like(like), like.new_zeros(()))


def refuse_count(latents: Sequence[Tensor | None], depth: int) -> None:
    """Refuses a list of latents of another length, or whose topmost is None."""
    if len(latents) != depth or latents[0] is None:
        raise ValueError(
            f"decode takes {depth} latents, the topmost first; only the lower ones may be None. Got {len(latents)}"
            f"{', the topmost None' if latents and latents[0] is None else ''}."
        )


@torch.no_grad()
def reconstruct(
    model: LatentModel, x: Float[Tensor, "b *x"], generator: Generator | None = None, *, temperature: float = 0.0
) -> Float[Tensor, "b *x"]:
    """Encodes and decodes x; returns the mean of the likelihood."""
    return model.likelihood.mean(model.decode(model.encode(x, generator, temperature=temperature)))


@torch.no_grad()
def sample(
    model: LatentModel, count: int, generator: Generator | None = None, *, temperature: float = 1.0, noisy: bool = False
) -> Float[Tensor, "n *x"]:
    """Samples x from the prior.

    Args:
        model: the model.
        count: number of samples.
        generator: one, or one for each sample.
        temperature: factor on the standard deviations of all latents.
        noisy: draw x from its likelihood instead of returning its mean.

    Raises:
        ValueError: a count below 1, or a negative temperature.
    """
    if count < 1 or not temperature >= 0:
        raise ValueError(f"count must be at least 1 and temperature at least 0, got {count} and {temperature}.")
    top = model.top(count, generator, temperature=temperature)
    output = model.decode([top, *[None] * (model.depth - 1)], generator, temperature=temperature)
    return model.likelihood.sample(output, generator) if noisy else model.likelihood.mean(output)


@torch.no_grad()
def interpolate(model: LatentModel, a: Float[Tensor, "*x"], b: Float[Tensor, "*x"], steps: int = 8) -> Float[Tensor, "n *x"]:
    """From a to b in `steps` images: all latents on the straight line between those of a and b.

    Raises:
        ValueError: fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"an interpolation needs at least 2 steps (its two ends), got {steps}.")
    ends = model.encode(torch.stack([a, b]))
    place = [torch.linspace(0, 1, steps).to(z).reshape(-1, *(1,) * (z.ndim - 1)) for z in ends]
    return model.likelihood.mean(model.decode([torch.lerp(z[:1], z[1:], w) for z, w in zip(ends, place, strict=True)]))


@torch.no_grad()
def plane(model: VAE, side: int = 20, *, reach: float = 0.98) -> Float[Tensor, "n *x"]:
    """Images over a two-dimensional latent: side², row by row from the top, at equally spaced quantiles of the prior along both axes.

    Args:
        model: with one latent of two entries.
        side: images along each axis.
        reach: share of the prior's mass between the outermost images, on each axis.

    Raises:
        ValueError: a model without a two-dimensional latent.
    """
    if model.depth != 1 or model.latent != (2,):
        raise ValueError(f"a plane needs one latent of two entries, got {model.depth} of shape {model.latent}; train with a latent of 2.")
    along = torch.special.ndtri(torch.linspace((1 - reach) / 2, (1 + reach) / 2, side))
    y, x = torch.meshgrid(-along, along, indexing="ij")
    z = torch.stack([x.flatten(), y.flatten()], 1).to(next(model.parameters()))
    return model.likelihood.mean(model.decode([z]))
