"""The first stage of latent diffusion: an image autoencoder with a weakly regularised latent.

    |x - D(z)| + features + critic  +  kl_weight KL(q(z | x) ‖ N(0, I)),      z ~ q(z | x) = N(mean(x), variance(x))

where all terms but the critic's are means over the entries of x. Mean and std of the latent are measured on the training data and saved
with the weights as a `Scaling`, so a denoiser sees a latent of unit scale. Rombach et al. (2022), section 3.1 and appendix G,
arXiv:2112.10752; Esser et al. (2021), eqs. 6 and 7, arXiv:2012.09841.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.data import Scaling
from sfumato.latent.vae import as_normal, draw
from sfumato.nets.autoencoder import ImageDecoder, ImageEncoder, Layout, PatchCritic
from sfumato.noise import Generator
from sfumato.process import Normal
from sfumato.storage import CheckpointError, read_tensors

Features = Callable[[Tensor], Sequence[Tensor]]  # an image in [-1, 1] to maps [b, c, h, w]


class Autoencoder(nn.Module):
    """An encoder, a decoder, and the scaling of the latent between them."""

    def __init__(
        self, encoder: ImageEncoder, decoder: ImageDecoder, scaling: Scaling | None = None, *, critic: PatchCritic | None = None
    ) -> None:
        """Combines encoder and decoder.

        Args:
            encoder: returns mean and log variance of each entry of the latent.
            decoder: maps the latent to an image.
            scaling: of the latent; None until it is measured.
            critic: discriminates real from reconstructed patches, in training.

        Raises:
            ValueError: encoder and decoder are for different latents.
        """
        super().__init__()
        if encoder.outward.out_channels != 2 * decoder.channels or encoder.layout.factor != decoder.layout.factor:
            raise ValueError(
                f"the decoder's latent has {decoder.channels} channels at 1/{decoder.layout.factor} of the size, the encoder's "
                f"{encoder.outward.out_channels // 2} at 1/{encoder.layout.factor}; build both for the same latent."
            )
        parts: dict[str, nn.Module] = {"encoder": encoder, "decoder": decoder}
        self.net = nn.ModuleDict(parts | ({} if critic is None else {"critic": critic}))
        self.encoder, self.decoder, self.critic = encoder, decoder, critic
        self.scaling = scaling or Scaling(shift=0.0, scale=1.0, dtype="float32")
        self.residual: float | None = None  # mean |x - D(z)| over the training data, set when measured

    @classmethod
    def build(cls, channels: int, latent: int, layout: Layout, *, critic: PatchCritic | None = None) -> "Autoencoder":
        """An untrained autoencoder for images of `channels` channels, with `latent` channels in the latent."""
        return cls(ImageEncoder(channels, 2 * latent, layout), ImageDecoder(latent, channels, layout), critic=critic)

    @property
    def factor(self) -> int:
        """Pixels per latent position along a side."""
        return self.encoder.layout.factor

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latent of an image of this shape."""
        return self.decoder.channels, *self.encoder.layout.size(shape[1:])

    def posterior(self, x: Float[Tensor, "b c h w"]) -> Normal:
        """q(z | x), for z as the decoder takes it."""
        return as_normal(self.encoder(x))

    def encode(
        self, x: Float[Tensor, "b c h w"], generator: Generator | None = None, *, temperature: float = 0.0
    ) -> Float[Tensor, "b d h2 w2"]:
        """The latent of x at unit scale: the mean, or a draw with `temperature` times the standard deviation."""
        z = draw(self.posterior(x), generator, temperature)
        return (z - float_of(self.scaling.shift)) / float_of(self.scaling.scale)

    def decode(
        self, z: Float[Tensor, "b d h2 w2"], sides: Sequence[int] | None = None, *, tile: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The image of a latent at unit scale.

        Args:
            z: the latent.
            sides: of the image; the full size of the latent by default.
            tile: decode in overlapping tiles of this side (latent positions), blended where they overlap: saves memory, not time.

        Raises:
            ValueError: a latent with another number of channels, or a tile below 4.
        """
        raw = z * float_of(self.scaling.scale) + float_of(self.scaling.shift)
        image = self.decoder(raw) if tile is None else decode_tiled(self.decoder, raw, tile=tile, factor=self.factor)
        return image if sides is None else image[..., : sides[0], : sides[1]]


def float_of(number: float | tuple[float, ...]) -> float:
    """The single number of a latent's scaling."""
    if isinstance(number, tuple):
        raise ValueError(f"a latent needs one shift and one scale, got {len(number)}; measure them over all its entries.")
    return number


def decode_tiled(
    decode: Callable[[Tensor], Tensor], z: Float[Tensor, "b d h w"], *, tile: int, factor: int, overlap: int | None = None
) -> Float[Tensor, "b c h2 w2"]:
    """decode(z) tile by tile: each pixel is the mean over the tiles that contain it, weighted by the distance from the tile's border.

    Args:
        decode: maps latents of any size to images `factor` times as large.
        z: the latent.
        tile: side of a tile, in positions of the latent.
        factor: of the decoder.
        overlap: of neighbouring tiles, in positions; half a tile by default.

    Raises:
        ValueError: a tile below 4, or an overlap that is not smaller than it.
    """
    overlap = tile // 2 if overlap is None else overlap
    if tile < 4 or not 1 <= overlap < tile:
        raise ValueError(f"tiles need a side of at least 4 and an overlap from 1 to side - 1, got {tile} and {overlap}.")
    total: Tensor | None = None
    weights = z.new_zeros(1, 1, z.shape[2] * factor, z.shape[3] * factor)
    for top in _starts(z.shape[2], tile, overlap):
        for left in _starts(z.shape[3], tile, overlap):
            image = decode(z[..., top : top + tile, left : left + tile])
            h, w = image.shape[2:]
            rows = _ramp(h, overlap * factor, top > 0, top + tile < z.shape[2]).to(image)
            columns = _ramp(w, overlap * factor, left > 0, left + tile < z.shape[3]).to(image)
            weight = rows[:, None] * columns
            if total is None:
                total = image.new_zeros(*image.shape[:2], *weights.shape[2:])
            place = (..., slice(top * factor, top * factor + h), slice(left * factor, left * factor + w))
            total[place] += weight * image
            weights[place] += weight
    assert total is not None
    return total / weights


def _starts(n: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start; the last one ends at n."""
    return sorted({min(start, max(0, n - tile)) for start in range(0, max(1, n - overlap), tile - overlap)})


def _ramp(n: int, width: int, fades_in: bool, fades_out: bool) -> Tensor:
    """Ones, with linear ramps over `width` at the ends that overlap another tile."""
    slope = (torch.arange(n) + 0.5) / width
    ones = torch.ones(n)
    return torch.minimum(slope if fades_in else ones, slope.flip(0) if fades_out else ones).clamp(max=1)


def loss(
    model: Autoencoder,
    x: Float[Tensor, "b c h w"],
    generator: Generator | None = None,
    *,
    kl_weight: float = 1e-6,
    features: Features | None = None,
    features_weight: float = 1.0,
    critic_weight: float = 0.0,
) -> Float[Tensor, "b"]:
    """The training loss of the autoencoder and of its critic, if it has one: one number an example.

    One backward pass trains both: the critic's own loss gets the image detached, the autoencoder's adversarial loss gets the critic with
    frozen weights and is scaled so that its gradient at the decoder's last layer is `critic_weight` times that of the reconstruction.

    Args:
        model: the autoencoder.
        x: images in [-1, 1].
        generator: of the latent.
        kl_weight: weight of the divergence, summed over the latent and divided by the entries of x.
        features: feature maps for a perceptual distance, normalised over channels here. Zhang et al. (2018), eq. 1, arXiv:1801.03924.
        features_weight: weight of that distance.
        critic_weight: weight of the adversarial loss; 0 disables the critic.
    """
    law = model.posterior(x)
    raw = law.sample(generator)
    decoded = model.decoder(raw)[..., : x.shape[2], : x.shape[3]]
    reconstruction = (decoded - x).abs().flatten(1).mean(1)
    if features is not None:
        reconstruction = reconstruction + features_weight * perceptual(features, decoded, x)
    standard = Normal(torch.zeros_like(law.mean), law.mean.new_zeros(()))
    total = reconstruction + kl_weight * law.kl(standard).flatten(1).sum(1) / x[0].numel()
    if model.critic is None or critic_weight == 0:
        return total
    frozen = {name: value.detach() for name, value in model.critic.named_parameters()}
    adversarial = -torch.func.functional_call(model.critic, frozen, (decoded,)).flatten(1).mean(1)
    critic_loss = 0.5 * ((1 - model.critic(x)).relu() + (1 + model.critic(decoded.detach())).relu()).flatten(1).mean(1)
    return (
        total + critic_weight * balance(reconstruction.mean(), adversarial.mean(), model.decoder.outward.weight) * adversarial + critic_loss
    )


def balance(reconstruction: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """|∇ reconstruction| / |∇ adversarial| at this weight, at most 1e4. Esser et al. (2021), eq. 7, arXiv:2012.09841."""
    if not weight.requires_grad:
        return reconstruction.new_ones(())
    norms = [torch.autograd.grad(part, weight, retain_graph=True)[0].norm() for part in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()


def perceptual(features: Features, a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Mean square distance of the features, normalised to unit length at each position, summed over the maps."""
    total = a.new_zeros(len(a))
    for ours, theirs in zip(features(a), features(b), strict=True):
        unit = [nn.functional.normalize(maps, dim=1, eps=1e-8) for maps in (ours, theirs)]
        total = total + (unit[0] - unit[1]).square().sum(1).flatten(1).mean(1)
    return total


@dataclass(frozen=True)
class Measured:
    """Statistics of a trained autoencoder: the scaling of its latents, and its reconstruction error.

    Args:
        scaling: of the latent.
        residual: mean |x - D(z)| over the training data, in units of x.
        made_from: fingerprint of the weights that encoded the latents; "" if unknown.
    """

    scaling: Scaling
    residual: float
    made_from: str = ""

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"scaling": self.scaling.to_json(), "residual": self.residual, "made_from": self.made_from}, indent=2)

    @classmethod
    def from_file(cls, path: Path) -> "Measured":
        """From a file that holds `to_json`.

        Raises:
            CheckpointError: it is missing or damaged, or its scale is zero or NaN.
        """
        try:
            record = json.loads(path.read_text())
            return cls(Scaling.from_json(record["scaling"]), float(record["residual"]), str(record.get("made_from", "")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is missing or damaged ({error}); delete it and train with --resume to measure it again."
            ) from None


def load_diffusers(folder: str | Path) -> Autoencoder:
    """Loads an autoencoder of diffusers: a folder with config.json and diffusion_pytorch_model.safetensors of an `AutoencoderKL`.

    Raises:
        ValueError: no such folder, an architecture that we do not have, or a scaling factor of zero or NaN.
        CheckpointError: weights are missing or do not fit the config.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no autoencoder of diffusers: config.json cannot be read ({error}).") from None
    model = _from_config(config, folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = {_our_name(name): value.float() for name, value in read_tensors(path).items()}
    for name, value in tensors.items():  # old files store attention matrices as 1×1 convolutions
        if value.ndim == 4 and model.net.state_dict().get(name, value).ndim == 2:
            tensors[name] = value[..., 0, 0]
    try:
        model.net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its config.json: {' '.join(str(error).split())}") from None
    return model.eval().requires_grad_(False)


def _from_config(config: dict[str, Any], folder: Path) -> Autoencoder:
    widths = tuple(config.get("block_out_channels", (64,)))
    expected = {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
    }
    for name, wanted in expected.items():
        got = config.get(name, wanted)
        if (list(got) if isinstance(got, tuple) else got) != wanted:
            raise ValueError(f"{folder}: {name} must be {wanted} for an autoencoder of this kind, got {got}.")
    quantised = {config.get("use_quant_conv", True), config.get("use_post_quant_conv", True)}
    if len(quantised) > 1:
        raise ValueError(f"{folder}: use_quant_conv and use_post_quant_conv must be equal, but one is true and one false.")
    factor, shift = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0 or not math.isfinite(shift):
        raise ValueError(f"{folder}: the latent's scaling_factor must be positive and finite, got {factor} (shift_factor {shift}).")
    layout = Layout(
        widths=widths,
        depth=config.get("layers_per_block", 1),
        patch=1,
        groups=config.get("norm_num_groups", 32),
        attention=config.get("mid_block_add_attention", True),
        mixes=quantised.pop(),
    )
    latent, channels = config.get("latent_channels", 4), (config.get("in_channels", 3), config.get("out_channels", 3))
    encoder, decoder = ImageEncoder(channels[0], 2 * latent, layout), ImageDecoder(latent, channels[1], layout)
    return Autoencoder(encoder, decoder, Scaling(shift=float(shift), scale=1 / factor, dtype="float32"))


def _our_name(name: str) -> str:
    """A weight's name in `model.net`, for its name in diffusers."""
    if name.startswith("quant_conv."):
        return name.replace("quant_conv", "encoder.mix")
    if name.startswith("post_quant_conv."):
        return name.replace("post_quant_conv", "decoder.mix")
    for theirs, ours in THEIRS:
        name = name.replace(theirs, ours)
    return name


THEIRS = (
    ("conv_norm_out", "norm"),
    ("conv_in", "inward"),
    ("conv_out", "outward"),
    ("conv_shortcut", "skip"),
    ("down_blocks", "stages"),
    ("up_blocks", "stages"),
    ("mid_block.resnets.0", "middle.0"),
    ("mid_block.resnets.1", "middle.2"),
    ("mid_block.attentions.0", "middle.1"),
    ("resnets", "blocks"),
    ("downsamplers.0.conv", "scale"),
    ("upsamplers.0.conv", "scale"),
    ("group_norm", "norm"),
    ("to_out.0", "outward"),
    ("proj_attn", "outward"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("query", "q"),
    ("key", "k"),
    ("value", "v"),
)
