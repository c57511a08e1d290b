"""The ladder: closed divergences with the mean of their ratios, one stream for both ways, any depth; and that it can learn."""

import math

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import latent
from sfumato.nets.autoencoder import Ladder

LEVELS = {1: [(0, 3)], 2: [(0, 2), (1, 3)], 4: [(0, 2), (1, 3), (1, 2), (2, 4)]}
every_depth = pytest.mark.parametrize("depth", LEVELS)


def ladder(depth, shape=(1, 9, 14), patch=2):
    model = latent.LadderVAE(Ladder(shape, 2 * shape[0], levels=LEVELS[depth], width=8, patch=patch), latent.DiscretisedLogistic())
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def images(n, shape=(1, 9, 14)):
    return torch.randint(0, 256, (n, *shape)) / 127.5 - 1


@every_depth
def test_each_levels_divergence_is_the_mean_of_its_ratio(depth):
    """In closed form and by the draws, given the same draws above."""
    model, x = ladder(depth), images(1).expand(800, -1, -1, -1)
    trace = model.trace(x, torch.Generator().manual_seed(0))
    assert len(trace.latents) == depth
    for each in trace.latents:
        apart = each.log_ratio - each.divergence
        assert apart.mean().abs() < 4 * apart.std() / math.sqrt(len(x))
        assert each.divergence.mean() > 1e-3


@every_depth
def test_the_bound_has_a_part_for_each_level(depth):
    model, x = ladder(depth), images(6)
    bound = latent.bound(model, x, draws=3, generator=torch.Generator().manual_seed(0))
    assert bound.steps.shape == (6, depth - 1)
    generator = torch.Generator().manual_seed(0)
    walks = [model.trace(x, generator) for _ in range(3)]
    by_hand = -torch.stack([walk.log_likelihood - sum(v.divergence for v in walk.latents) for walk in walks]).mean(0)
    torch.testing.assert_close(bound.total, by_hand / (x[0].numel() * math.log(2)))


@every_depth
def test_what_is_encoded_is_decoded_over_the_same_stream(depth):
    """The draws of a walk, handed to decode, say what the walk's likelihood was read from."""
    model, x = ladder(depth), images(3)
    trace = model.trace(x, torch.Generator().manual_seed(0))
    said = model.decode([each.z for each in trace.latents])
    torch.testing.assert_close(model.likelihood.log_prob(said, x), trace.log_likelihood)
    encoded = model.encode(x, torch.Generator().manual_seed(0), temperature=1.0)
    for z, each in zip(encoded, trace.latents, strict=True):
        torch.testing.assert_close(z, each.z)


@every_depth
def test_the_prior_is_that_of_the_walk(depth):
    """Drawn from the top with everything given but the lowest latent, that one has the prior's law of a walk there."""
    model, x = ladder(depth), images(1).expand(1500, -1, -1, -1)
    trace = model.trace(x[:1], torch.Generator().manual_seed(0))
    shown = latent.LadderVAE(model.net, latent.Gaussian())
    if depth == 1:
        z = shown.top(1500, torch.Generator().manual_seed(1))
    else:
        caught = []
        model.net.join[0].register_forward_hook(lambda module, inputs, output: caught.append(inputs[0]))
        given = [each.z.expand(1500, -1, -1, -1) for each in trace.latents[:-1]]
        model.decode([*given, None], torch.Generator().manual_seed(1))
        z = caught[0]
    law = trace.latents[-1].p
    deviation = (law.log_variance / 2).exp()[0]
    assert ((z.mean(0) - law.mean[0]) / deviation).abs().max() < 4.5 / math.sqrt(1500)
    torch.testing.assert_close(z.std(0), deviation, rtol=0.1, atol=0)


@pytest.mark.parametrize(("shape", "patch"), [((1, 9, 14), 2), ((3, 7, 7), 1), ((1, 28, 28), 2)])
def test_every_size_and_every_pixel(shape, patch):
    model, x = ladder(4, shape, patch), images(2, shape).requires_grad_()
    said = model.decode(model.encode(x))
    assert said.shape == (2, 2 * shape[0], *shape[1:])
    (reach,) = torch.autograd.grad(said.square().sum(), x)
    assert (reach != 0).all()
    with torch.no_grad():
        shapes = [tuple(z.shape[1:]) for z in model.encode(x)]
    assert shapes == [model.net.latent_shape(k) for k in reversed(range(4))]


def test_a_sample_depends_on_its_own_generator_alone():
    model = ladder(4)
    whole = latent.sample(model, 4, sf.row_generators(5, range(4)), temperature=0.8)
    part = latent.sample(model, 2, sf.row_generators(5, range(2, 4)), temperature=0.8)
    torch.testing.assert_close(whole[2:], part)


@pytest.mark.usefixtures("unchecked")
def test_a_ladder_learns_to_use_its_latents():
    """On images of one random grey each, the bound falls below the entropy that a decoder without latents could reach."""
    torch.manual_seed(0)
    model = latent.LadderVAE(Ladder((1, 4, 4), 2, levels=[(0, 2), (1, 2)], width=8, patch=1), latent.DiscretisedLogistic(bin_width=2 / 15))
    x = (torch.randint(0, 16, (512, 1, 1, 1)) / 7.5 - 1).expand(-1, 1, 4, 4)
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=5e-3), torch.Generator().manual_seed(0)
    for step in range(150):
        value = latent.loss(model.trace(x[:64], generator), 16, beta=min(1.0, step / 60)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    bits = latent.bound(model, x[128:], generator=generator).total.mean()
    assert bits < 2.0  # four bits a pixel without a latent; a quarter of a bit is in the data
    assert not all(use.is_collapsed for use in latent.level_use(model, x[128:], generator=generator))


def test_a_new_ladder_says_what_its_prior_knew():
    model = latent.LadderVAE(Ladder((1, 8, 8), 2, levels=LEVELS[2], width=8), latent.DiscretisedLogistic())
    uses = latent.level_use(model, images(50, (1, 8, 8)))
    assert [use.is_collapsed for use in uses] == [True, True]
    assert [use.level for use in uses] == [1, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ladder((1, 8, 8), 2, levels=[]), "none is finer than the one below"),
        (lambda: Ladder((1, 8, 8), 2, levels=[(1, 2), (0, 2)]), "none is finer than the one below"),
        (lambda: ladder(2).trace(images(2, (1, 8, 8))), r"this network takes \[b, 1, 9, 14\]"),
        (lambda: ladder(2).decode([torch.zeros(1, 3, 9, 9), None]), r"this network takes \[b, 3, 3, 4\].*do not fit"),
        (lambda: ladder(2).decode([torch.zeros(1, 3, 3, 4)]), "decode takes 2 latents"),
    ],
    ids=["none", "finer", "image", "latent", "count"],
)
def test_bad_input_gets_its_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
