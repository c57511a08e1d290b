"""The first stage of latent diffusion: an autoencoder of images whose latent is regularised just enough to be walked in.

    |x - D(z)| + features + critic  +  kl_weight KL(q(z | x) ‖ N(0, I)),      z ~ q(z | x) = N(mean(x), variance(x))

all but the critic's part as means over the entries of x. The latent's mean and deviation are measured on the training data and kept with
the weights as a `Scaling`, so what a denoiser sees has unit scale and nobody copies a factor by hand. Rombach et al. (2022), section 3.1
and appendix G, arXiv:2112.10752; Esser et al. (2021), eqs. 6 and 7, arXiv:2012.09841.
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
        """Joins the two.

        Args:
            encoder: gives mean and log variance of each entry of the latent.
            decoder: from the latent back to an image.
            scaling: of the latent; none before it was measured.
            critic: tells real patches from made ones, in training.

        Raises:
            ValueError: a decoder for another latent than the encoder's.
        """
        super().__init__()
        if encoder.outward.out_channels != 2 * decoder.channels or encoder.layout.factor != decoder.layout.factor:
            raise ValueError(
                f"the decoder's latent has {decoder.channels} channels at 1/{decoder.layout.factor} of the size, the encoder's "
                f"{encoder.outward.out_channels // 2} at 1/{encoder.layout.factor}; build both for one latent."
            )
        parts: dict[str, nn.Module] = {"encoder": encoder, "decoder": decoder}
        self.net = nn.ModuleDict(parts | ({} if critic is None else {"critic": critic}))
        self.encoder, self.decoder, self.critic = encoder, decoder, critic
        self.scaling = scaling or Scaling(shift=0.0, scale=1.0, dtype="float32")
        self.residual: float | None = None  # mean |x - D(z)| over the training data, once it was measured

    @classmethod
    def build(cls, channels: int, latent: int, layout: Layout, *, critic: PatchCritic | None = None) -> "Autoencoder":
        """An untrained one, of images of so many channels, with so many channels of latent."""
        return cls(ImageEncoder(channels, 2 * latent, layout), ImageDecoder(latent, channels, layout), critic=critic)

    @property
    def factor(self) -> int:
        """Pixels along a side to one position of the latent."""
        return self.encoder.layout.factor

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one latent of images of this shape."""
        return self.decoder.channels, *self.encoder.layout.size(shape[1:])

    def posterior(self, x: Float[Tensor, "b c h w"]) -> Normal:
        """q(z | x), z as the decoder takes it."""
        return as_normal(self.encoder(x))

    def encode(
        self, x: Float[Tensor, "b c h w"], generator: Generator | None = None, *, temperature: float = 0.0
    ) -> Float[Tensor, "b d h2 w2"]:
        """The latent of x at unit scale: the mean, or a draw with its standard deviation times `temperature`."""
        z = draw(self.posterior(x), generator, temperature)
        return (z - float_of(self.scaling.shift)) / float_of(self.scaling.scale)

    def decode(
        self, z: Float[Tensor, "b d h2 w2"], sides: Sequence[int] | None = None, *, tile: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The image of a latent at unit scale.

        Args:
            z: the latent.
            sides: of the image; of a whole latent where not given.
            tile: decode in overlapping tiles of so many positions along a side, blended where they overlap: for memory, not for speed.

        Raises:
            ValueError: a latent of other channels, or a tile below 4.
        """
        raw = z * float_of(self.scaling.scale) + float_of(self.scaling.shift)
        image = self.decoder(raw) if tile is None else decode_tiled(self.decoder, raw, tile=tile, factor=self.factor)
        return image if sides is None else image[..., : sides[0], : sides[1]]


def float_of(number: float | tuple[float, ...]) -> float:
    """The one number of a latent's scaling."""
    if isinstance(number, tuple):
        raise ValueError(f"a latent has one shift and one scale, got {len(number)}; measure them over all its entries.")
    return number


def decode_tiled(
    decode: Callable[[Tensor], Tensor], z: Float[Tensor, "b d h w"], *, tile: int, factor: int, overlap: int | None = None
) -> Float[Tensor, "b c h2 w2"]:
    """decode(z) tile by tile: each pixel the mean of the tiles that hold it, each weighted by its distance from the tile's border.

    Args:
        decode: latents of any size to images `factor` times as large.
        z: the latent.
        tile: side of a tile, in positions of the latent.
        factor: of the decoder.
        overlap: of neighbouring tiles, in positions; half a tile where not given.

    Raises:
        ValueError: a tile below 4, or an overlap that is not smaller than it.
    """
    overlap = tile // 2 if overlap is None else overlap
    if tile < 4 or not 1 <= overlap < tile:
        raise ValueError(f"tiles need a side of at least 4 and an overlap of at least 1 below it, got {tile} and {overlap}.")
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
    """Where tiles begin, the last one flush with the end."""
    return sorted({min(start, max(0, n - tile)) for start in range(0, max(1, n - overlap), tile - overlap)})


def _ramp(n: int, width: int, fades_in: bool, fades_out: bool) -> Tensor:
    """Ones, with linear ramps over `width` at the ends that another tile covers, too."""
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
    """What the autoencoder, and its critic where it has one, are trained on: one number an example.

    One backward pass teaches both: the critic's own loss sees the image without its gradient, the autoencoder's part sees the critic
    without its weights' gradient. That part is scaled so that on the decoder's last layer its gradient is `critic_weight` times that of the
    reconstruction.

    Args:
        model: the autoencoder.
        x: images in [-1, 1].
        generator: of the latent.
        kl_weight: on the divergence of all entries together, over the entries of x.
        features: a perceptual distance's maps, normalised over their channels here. Zhang et al. (2018), eq. 1, arXiv:1801.03924.
        features_weight: on that distance.
        critic_weight: on the critic's part; 0 leaves the critic out.
    """
    law = model.posterior(x)
    raw = law.sample(generator)
    made = model.decoder(raw)[..., : x.shape[2], : x.shape[3]]
    seen = (made - x).abs().flatten(1).mean(1)
    if features is not None:
        seen = seen + features_weight * perceptual(features, made, x)
    standard = Normal(torch.zeros_like(law.mean), law.mean.new_zeros(()))
    total = seen + kl_weight * law.kl(standard).flatten(1).sum(1) / x[0].numel()
    if model.critic is None or critic_weight == 0:
        return total
    frozen = {name: value.detach() for name, value in model.critic.named_parameters()}
    fooled = -torch.func.functional_call(model.critic, frozen, (made,)).flatten(1).mean(1)
    judged = 0.5 * ((1 - model.critic(x)).relu() + (1 + model.critic(made.detach())).relu()).flatten(1).mean(1)
    return total + critic_weight * balance(seen.mean(), fooled.mean(), model.decoder.outward.weight) * fooled + judged


def balance(seen: Tensor, fooled: Tensor, weight: Tensor) -> Tensor:
    """|∇ seen| / |∇ fooled| on this weight, at most 1e4. Esser et al. (2021), eq. 7, arXiv:2012.09841."""
    if not weight.requires_grad:
        return seen.new_ones(())
    norms = [torch.autograd.grad(part, weight, retain_graph=True)[0].norm() for part in (seen, fooled)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()


def perceptual(features: Features, a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Mean square distance of the features, each position's brought to unit length, summed over the maps."""
    total = a.new_zeros(len(a))
    for ours, theirs in zip(features(a), features(b), strict=True):
        unit = [nn.functional.normalize(maps, dim=1, eps=1e-8) for maps in (ours, theirs)]
        total = total + (unit[0] - unit[1]).square().sum(1).flatten(1).mean(1)
    return total


@dataclass(frozen=True)
class Measured:
    """What a trained autoencoder's latents look like, and how far its images are off.

    Args:
        scaling: of the latent.
        residual: mean |x - D(z)| over the training data, in units of x.
        made_from: fingerprint of the weights that latents were encoded by; "" where none were, or it was not kept.
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
            CheckpointError: it is missing or damaged, or has a scale of zero or NaN.
        """
        try:
            record = json.loads(path.read_text())
            return cls(Scaling.from_json(record["scaling"]), float(record["residual"]), str(record.get("made_from", "")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is missing or damaged ({error}); delete it and train with --resume to measure anew.") from None


def load_diffusers(folder: str | Path) -> Autoencoder:
    """An autoencoder that diffusers saved: a folder with config.json and diffusion_pytorch_model.safetensors of an `AutoencoderKL`.

    Raises:
        ValueError: no such folder, an architecture that is none of ours, or a scaling factor of zero or NaN.
        CheckpointError: weights that are missing or do not fit.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no autoencoder of diffusers: config.json cannot be read ({error}).") from None
    model = _from_config(config, folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = {_our_name(name): value.float() for name, value in read_tensors(path).items()}
    for name, value in tensors.items():  # old files keep the attention's matrices as 1×1 convolutions
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
        raise ValueError(f"{folder}: use_quant_conv and use_post_quant_conv must agree, got one of each.")
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
    """A weight's name in `model.net`, from its name in diffusers."""
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
