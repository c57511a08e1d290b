"""The hierarchical VAE with top-down sharing: encoder and decoder use the same top-down stream.

    q(z_1:T | x) = Π q(z_k | z_>k, x)      and      p(z_1:T) = Π p(z_k | z_>k)

At each level both laws are computed from the stream of the draws above; the encoder's also uses the features of x at that resolution, and
is parametrised as a correction of the prior, so a level that adds nothing costs nothing. All divergences have closed forms. Sønderby et
al. (2016), arXiv:1602.02282; Kingma et al. (2016), arXiv:1606.04934. The Markov chain of the notes is `VAE` with several latents.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.latent.bound import LatentDraw, Trace
from sfumato.latent.likelihood import Likelihood
from sfumato.latent.vae import as_normal, draw, refuse_count
from sfumato.nets.autoencoder import Ladder
from sfumato.noise import Generator
from sfumato.process import Normal


class LadderVAE(nn.Module):
    """A hierarchical VAE with a `nets.Ladder` as its network."""

    def __init__(self, net: Ladder, likelihood: Likelihood) -> None:
        """Combines the network and the likelihood of x."""
        super().__init__()
        self.net, self.likelihood = net, likelihood

    @property
    def depth(self) -> int:
        """T."""
        return len(self.net.levels)

    def trace(self, x: Float[Tensor, "b c h w"], generator: Generator | None = None) -> Trace:
        """Draws all latents from the encoder, top down.

        Raises:
            ValueError: an x that does not fit the network.
        """
        features, stream, latents = self.net.features(x), self.net.top_stream(len(x)), []
        for k in reversed(range(self.depth)):
            p, q = self._laws(k, stream, features[k])
            z = q.sample(generator)
            latents.append(LatentDraw(z, q, p))
            stream = self.net.below(k, stream, z)
        return Trace(latents, self.likelihood.log_prob(self.net.output(stream), x))

    def encode(self, x: Float[Tensor, "b c h w"], generator: Generator | None = None, *, temperature: float = 0.0) -> list[Tensor]:
        """The latents of x, z_T first: the encoder's means, or draws with `temperature` times the standard deviation."""
        features, stream, zs = self.net.features(x), self.net.top_stream(len(x)), []
        for k in reversed(range(self.depth)):
            zs.append(draw(self._laws(k, stream, features[k])[1], generator, temperature))
            stream = self.net.below(k, stream, zs[-1])
        return zs

    def decode(
        self, latents: Sequence[Tensor | None], generator: Generator | None = None, *, temperature: float = 1.0
    ) -> Float[Tensor, "b *said"]:
        """The decoder's output, for the likelihood; latents that are None are drawn from their priors.

        Raises:
            ValueError: the number of latents is not the number of levels, the topmost is None, or one does not fit.
        """
        refuse_count(latents, self.depth)
        assert latents[0] is not None
        stream = self.net.top_stream(len(latents[0]))
        for k, given in zip(reversed(range(self.depth)), latents, strict=True):
            z = draw(as_normal(self.net.prior[k](stream)), generator, temperature) if given is None else given
            stream = self.net.below(k, stream, z)
        return self.net.output(stream)

    def top(self, count: int, generator: Generator | None = None, *, temperature: float = 1.0) -> Float[Tensor, "n c h w"]:
        """z_T from its prior, whose mean and variance are learned."""
        return draw(as_normal(self.net.prior[self.depth - 1](self.net.top_stream(count))), generator, temperature)

    def _laws(self, k: int, stream: Tensor, features: Tensor) -> tuple[Normal, Normal]:
        p = as_normal(self.net.prior[k](stream))
        mean, log_ratio = self.net.posterior[k](torch.cat([stream, features], dim=1)).chunk(2, dim=1)
        return p, Normal(p.mean + (p.log_variance / 2).exp() * mean, (p.log_variance + log_ratio).clamp(-30, 20))
