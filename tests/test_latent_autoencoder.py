"""The autoencoder: diffusers' weights give diffusers' outputs, tiles join without a seam, and each weight is taught by its own loss."""

import json
import math

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.data import Scaling
from sfumato.latent import autoencoder as ae
from sfumato.latent import diffusion
from sfumato.nets.autoencoder import ImageDecoder, ImageEncoder, Layout, PatchCritic
from sfumato.storage import CheckpointError

TINY = Layout(widths=(8, 8), patch=1, groups=4)


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def awake(model):
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def tiny(critic=False, layout=TINY, channels=3):
    return awake(ae.Autoencoder.build(channels, 2, layout, critic=PatchCritic(channels, width=8) if critic else None))


def theirs(folder, **changes):
    diffusers = pytest.importorskip("diffusers")
    options = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "latent_channels": 3,
        "scaling_factor": 0.7,
    } | changes
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(**options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1},
        {"mid_block_add_attention": False, "layers_per_block": 1},
        {
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8,),
            "down_block_types": ("DownEncoderBlock2D",),
            "up_block_types": ("UpDecoderBlock2D",),
        },
    ],
    ids=["plain", "no quant", "no attention", "one width"],
)
def test_diffusers_weights_give_diffusers_outputs(tmp_path, changes):
    model, ours = theirs(tmp_path, **changes), ae.load_diffusers(tmp_path)
    x = 2 * torch.rand(2, changes.get("in_channels", 3), 16, 24) - 1
    with torch.no_grad():
        law = model.encode(x).latent_dist
        ours_law = ours.posterior(x)
        torch.testing.assert_close(ours_law.mean, law.mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours_law.log_variance, law.logvar, atol=1e-5, rtol=0)
        z = torch.randn_like(law.mean)
        factor, shift = model.config.scaling_factor, model.config.shift_factor or 0.0
        torch.testing.assert_close(ours.decode(z), model.decode(z / factor + shift).sample, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode(x), (law.mean - shift) * factor, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling_factor": 0}, "scaling_factor must be positive and finite, got 0"),
        ({"scaling_factor": math.nan}, "scaling_factor must be positive and finite, got nan"),
        ({"act_fn": "relu"}, "act_fn must be silu"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types must be"),
        ({"use_quant_conv": False}, "must be equal"),
    ],
    ids=lambda v: "" if isinstance(v, str) else next(iter(v)),
)
def test_other_architectures_and_scales_are_refused(tmp_path, change, message):
    theirs(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        ae.load_diffusers(tmp_path)


def test_no_folder_and_other_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        ae.load_diffusers(tmp_path / "nowhere")
    theirs(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"latent_channels": 5}))
    with pytest.raises(CheckpointError, match="does not fit its config"):
        ae.load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("shape", "layout"), [((3, 13, 22), TINY), ((1, 9, 9), Layout(widths=(8, 8), patch=2)), ((3, 8, 8), Layout(widths=(8,), patch=1))]
)
def test_any_size_comes_back(shape, layout):
    model = tiny(layout=layout, channels=shape[0])
    x = torch.rand(2, *shape) * 2 - 1
    z = model.encode(x)
    assert z.shape[1:] == model.latent_shape(shape)
    assert model.decode(z, shape[1:]).shape == x.shape


def test_the_scaling_is_undone():
    model = tiny()
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    plain, image = model.encode(x), model.decode(model.encode(x))
    model.scaling = Scaling(shift=0.3, scale=2.5, dtype="float32")
    torch.testing.assert_close(model.encode(x), (plain - 0.3) / 2.5)
    torch.testing.assert_close(model.decode(model.encode(x)), image, atol=1e-5, rtol=1e-5)
    first, second = (model.encode(x, torch.Generator().manual_seed(k), temperature=1.0) for k in (0, 1))
    assert (first - second).abs().min() > 0


@pytest.mark.parametrize("size", [(8, 8), (9, 21), (30, 5), (16, 17)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, None), (6, 1), (9, 8)])
def test_tiles_of_a_local_decoder_join_exactly(size, tile, overlap):
    up = nn.ConvTranspose2d(2, 3, 4, stride=4)
    z = torch.randn(2, 2, *size)
    whole = up(z)
    torch.testing.assert_close(ae.decode_tiled(up, z, tile=tile, factor=4, overlap=overlap), whole, atol=1e-5, rtol=1e-5)


def test_tiles_of_a_real_decoder_have_no_seams():
    """Where neighbours overlap the blend moves smoothly: no step across a tile's border is larger than those inside."""
    model = tiny()
    z = torch.randn(1, 2, 12, 12).cumsum(2).cumsum(3) / 12
    smooth = model.decode(z, tile=8)
    whole = model.decode(z)
    assert smooth.shape == whole.shape
    assert (smooth - whole).abs().mean() < 0.5 * whole.std()
    steps = (smooth.diff(dim=3) - whole.diff(dim=3)).abs().amax((0, 1, 2))
    borders = [7, 8, 15]
    assert steps[borders].max() <= 2 * steps[[i for i in range(len(steps)) if i not in borders]].max()
    torch.testing.assert_close(model.decode(z, tile=12), whole)


@pytest.mark.parametrize(("tile", "overlap"), [(3, 1), (8, 8), (8, 0)])
def test_tiles_that_cannot_overlap_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="tiles need a side of at least 4"):
        ae.decode_tiled(nn.Identity(), torch.zeros(1, 1, 20, 20), tile=tile, factor=1, overlap=overlap)


def test_the_loss_is_what_it_says():
    """Against the parts computed apart, on the same draw."""
    model, x = tiny(), torch.rand(4, 3, 8, 8) * 2 - 1
    features = lambda image: [image, nn.functional.avg_pool2d(image, 2)]  # noqa: E731
    ours = ae.loss(model, x, torch.Generator().manual_seed(0), kl_weight=0.3, features=features, features_weight=0.7)
    law = model.posterior(x)
    made = model.decoder(law.sample(torch.Generator().manual_seed(0)))
    distance = torch.zeros(4)
    for a, b in zip(features(made), features(x), strict=True):
        cosine = nn.functional.cosine_similarity(a, b, dim=1)
        distance += (2 - 2 * cosine).flatten(1).mean(1)
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(law.mean, (law.log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    truth = (made - x).abs().flatten(1).mean(1) + 0.7 * distance + 0.3 * divergence.flatten(1).sum(1) / 192
    torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-5)


def test_one_pass_teaches_critic_and_autoencoder_apart():
    """The critic's gradient is that of its hinge alone; the autoencoder's is that of reconstruction plus the balanced part."""
    model, x = tiny(critic=True), torch.rand(4, 3, 16, 16) * 2 - 1
    ae.loss(model, x, torch.Generator().manual_seed(0), critic_weight=0.5).mean().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.net.named_parameters()}
    made = model.decoder(model.posterior(x).sample(torch.Generator().manual_seed(0)))
    hinge = 0.5 * ((1 - model.critic(x)).relu().mean() + (1 + model.critic(made.detach())).relu().mean())
    for (name, parameter), gradient in zip(
        model.critic.named_parameters(), torch.autograd.grad(hinge, list(model.critic.parameters())), strict=True
    ):
        torch.testing.assert_close(ours[f"critic.{name}"], gradient, atol=1e-6, rtol=1e-4)
        assert parameter.requires_grad
    last = model.decoder.outward.weight
    seen, fooled = (made - x).abs().mean(), -model.critic(made).mean()
    a, b = (torch.autograd.grad(part, last, retain_graph=True)[0] for part in (seen, fooled))
    wanted = a + 0.5 * a.norm() / (b.norm() + 1e-4) * b
    torch.testing.assert_close(ours["decoder.outward.weight"], wanted, atol=1e-5, rtol=1e-3)


def test_a_critic_learns_to_tell():
    torch.manual_seed(0)
    critic = PatchCritic(1, width=8)
    real, made = torch.rand(64, 1, 16, 16), torch.rand(64, 1, 16, 16).mean(3, keepdim=True).expand(-1, -1, -1, 16)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for _ in range(60):
        value = ((1 - critic(real)).relu() + (1 + critic(made)).relu()).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert critic(real).mean() > 0.5
    assert critic(made).mean() < -0.5


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="build both for the same latent"):
        ae.Autoencoder(ImageEncoder(3, 6, TINY), ImageDecoder(2, 3, TINY))
    with pytest.raises(ValueError, match=r"this decoder takes latents \[b, 2, h, w\], got \(1, 3, 4, 4\)"):
        tiny().decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"this encoder takes images \[b, 3, h, w\], got \(1, 1, 8, 8\)"):
        tiny().encode(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    "text",
    [
        '{"scaling": {"shift": 0, "scale": 0, "dtype": "float32"}, "residual": 1}',
        '{"scaling": {"shift": 0, "scale": NaN, "dtype": "float32"}, "residual": 1}',
        "{}",
        "nonsense",
    ],
)
def test_a_scale_of_zero_or_nan_gets_its_sentence(tmp_path, text):
    (tmp_path / "latent.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"latent\.json is missing or damaged"):
        ae.Measured.from_file(tmp_path / "latent.json")


def test_what_was_measured_comes_back(tmp_path):
    measured = ae.Measured(Scaling(shift=0.25, scale=1.75, dtype="float32"), 0.04)
    (tmp_path / "latent.json").write_text(measured.to_json())
    assert ae.Measured.from_file(tmp_path / "latent.json") == measured


def test_the_density_bound_of_an_exact_model_is_its_density():
    """-log2 p(z) per entry, by the bound of continuous time, for data blurred by next to nothing."""
    torch.set_default_dtype(torch.float64)
    oracle = sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[1.0, 0.5], [-0.8, 0.0]]), 0.2 * torch.eye(2).repeat(2, 1, 1))
    z, _ = oracle.sample(6000, torch.Generator().manual_seed(7))
    schedule = sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0)
    bits = diffusion.density_bits(
        oracle, z, schedule, draws=32, generator=torch.Generator().manual_seed(0), times=torch.Generator().manual_seed(1)
    )
    apart = bits + oracle.log_prob(z) / (2 * math.log(2))
    assert apart.mean().abs() < 4 * apart.std() / math.sqrt(len(z)) + 2e-3
    with pytest.raises(ValueError, match="draws must be at least 1"):
        diffusion.density_bits(oracle, z, schedule, draws=0)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 3.0)])
def test_the_bound_through_both_stages_is_the_vaes_bound_with_that_prior(shift, scale):
    """With an exact standard normal prior at unit scale the latent's part is the closed KL there, whatever the latent's scaling."""
    model, x = tiny(), (torch.randint(0, 256, (200, 3, 8, 8)) / 127.5 - 1)
    model.scaling = Scaling(shift=shift, scale=scale, dtype="float32")
    entries = math.prod(model.latent_shape((3, 8, 8)))
    normal = sf.Gaussian(torch.zeros(entries), torch.eye(entries))

    def predict(z_t, level, cond=None):
        flat = sf.Level(*(scale.reshape(-1, 1) if scale.ndim else scale for scale in (level.alpha, level.sigma)))
        p = normal(z_t.flatten(1), flat)
        return sf.Prediction(p.x0.reshape(z_t.shape).float(), p.eps.reshape(z_t.shape).float())

    with torch.no_grad():
        ours = diffusion.bound(
            model, predict, sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0), x, residual=0.2, draws=32,
            generator=torch.Generator().manual_seed(0), times=torch.Generator().manual_seed(1),
        )  # fmt: skip
        raw = model.posterior(x)
        law = sf.Normal((raw.mean - shift) / scale, raw.log_variance - 2 * math.log(scale))
        standard = sf.Normal(torch.zeros_like(law.mean), torch.zeros(()))
        divergence = law.kl(standard).flatten(1).sum(1) / (192 * math.log(2))
        apart = ours.latent - divergence
        assert apart.mean().abs() < 4 * apart.std() / math.sqrt(200) + 1e-3
    assert ours.total.mean() > divergence.mean()
    assert ours.standard_error > 0
    with pytest.raises(ValueError, match="residual must be positive"):
        diffusion.bound(model, predict, sf.Cosine(), x, residual=0.0)
