"""The public check of a step: it passes ours, and finds what is wrong with others."""

from dataclasses import dataclass

import pytest
import torch
from problems import label, long_walk

import sfumato as sf
from sfumato.verify.parts_step import step as verify_step


def failures(part, **options):
    return {result.row.id for result in verify_step(part, **options) if not result.passed}


@long_walk
@pytest.mark.parametrize(
    ("part", "order"), [(sf.steps.DDIM(), 1), (sf.steps.Heun(), 2), (sf.steps.Multistep(3), 3), (sf.steps.UniPC(2), 3)], ids=label
)
def test_our_deterministic_steps_pass(part, order):
    assert not failures(part, order=order)


@long_walk
@pytest.mark.parametrize("part", [sf.steps.Multistep(2, 1.0), sf.steps.EulerMaruyama()], ids=label)
def test_our_stochastic_steps_pass(part):
    assert not failures(part)


@dataclass(frozen=True)
class KeepsAlpha:
    """DDIM with the alpha of the wrong level."""

    def __call__(self, predict, x, t, s, memory, generator):
        p = predict(x, t)
        return t.alpha * p.x0 + s.sigma * p.eps, None


@dataclass(frozen=True)
class DividesBySigma:
    """DDIM, but for a division by the noise that is no longer there."""

    def __call__(self, predict, x, t, s, memory, generator):
        p = predict(x, t)
        return s.alpha * p.x0 + s.sigma * p.eps * (s.sigma / s.sigma), None


@dataclass(frozen=True)
class TooLittleNoise:
    """Ancestral with nine tenths of the noise."""

    def __call__(self, predict, x, t, s, memory, generator):
        q = sf.process.reverse(predict(x, t), x, t, s)
        return (0.1 * q.mean + 0.9 * q.sample(generator) if bool(s.sigma > 0) else q.mean), None


@long_walk
@pytest.mark.parametrize(
    ("part", "options", "found"),
    [
        (KeepsAlpha(), {"order": 1}, {"step-order-vp", "step-order-flow"}),
        (DividesBySigma(), {"order": 1}, {"step-clean-end", "step-end-without-signal"}),
        (sf.steps.DDIM(), {"order": 2}, {"step-order-vp", "step-order-ve", "step-order-flow"}),
        (TooLittleNoise(), {}, {"step-law"}),
    ],
    ids=label,
)
def test_what_is_wrong_is_found(part, options, found):
    assert found <= failures(part, **options)


def test_a_result_names_the_part():
    result = verify_step(sf.steps.DDIM(), order=1, steps=16)[0]
    assert result.row.function == "DDIM(eta=0.0)"
    assert "order" in result.row.how
    assert torch.get_default_dtype() == torch.float64
