"""The checks that users run on parts of their own: ours pass, and each planted fault is found by its row."""

import dataclasses

import pytest
import torch
from problems import every_schedule, label, mixture

import sfumato as sf
from sfumato import verify


def failed(results):
    return {result.row.id for result in results if not result.passed}


@every_schedule
def test_our_schedules_pass(schedule):
    assert not failed(verify.schedule(schedule))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrongInverse(sf.Flow):
    def inverse(self, log_snr):
        return (-log_snr / 2.1).sigmoid()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rising(sf.VE):
    def curve(self, u):
        return -u + 3 * torch.sin(u)


class WrongLevel(sf.Cosine):
    def level(self, t, *, like=None):
        level = super().level(t, like=like)
        return sf.Level(level.alpha, 1.01 * level.sigma)


class Unshaped(sf.Cosine):
    def level(self, t, *, like=None):
        return super().level(t)


@pytest.mark.parametrize(
    ("part", "row"),
    [
        (WrongInverse(), "schedule-inverse"),
        (Rising(), "schedule-falls"),
        (WrongLevel(), "schedule-level"),
        (Unshaped(), "schedule-broadcast"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_fault_in_a_schedule_is_found(part, row):
    assert row in failed(verify.schedule(part))


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.VE(), sf.Discrete.linear(100)], ids=label)
def test_an_exact_predictor_passes(schedule):
    x0, _ = mixture.sample(4000, torch.Generator().manual_seed(0))
    assert not failed(verify.predictor(mixture, x0, schedule, calibrated=True))


def test_a_denoiser_passes_but_is_not_calibrated():
    denoiser = sf.Denoiser(sf.nets.MLP((2,), width=16, depth=1), sf.v_target)
    x0, _ = mixture.sample(4000, torch.Generator().manual_seed(0))
    assert failed(verify.predictor(denoiser, x0, sf.Cosine(), calibrated=True)) == {"predictor-calibrated"}


def wrong(change):
    return lambda x_t, level, cond=None: change(mixture(x_t, level, cond), x_t, level)


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda p, x, level: sf.Prediction(p.x0, -p.eps), "predictor-explains"),
        (lambda p, x, level: sf.Prediction.from_x0(p.x0 + 0.1 * x.mean(), x, level), "predictor-rows"),
        (lambda p, x, level: sf.Prediction.from_x0(p.x0 + 0.1 * level.alpha.ndim, x, level), "predictor-levels"),
        (lambda p, x, level: sf.Prediction.from_x0(p.x0 + 0.1 * torch.rand(1), x, level), "predictor-repeats"),
        (lambda p, x, level: sf.Prediction(p.x0 / (level.alpha > 1e-3), p.eps), "predictor-finite"),
        (lambda p, x, level: sf.Prediction.from_x0(0.9 * p.x0, x, level), "predictor-calibrated"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_fault_in_a_predictor_is_found(change, row):
    x0, _ = mixture.sample(4000, torch.Generator().manual_seed(0))
    assert row in failed(verify.predictor(wrong(change), x0, sf.Cosine(), calibrated=True))


def test_one_example_is_refused():
    with pytest.raises(ValueError, match="two examples"):
        verify.predictor(mixture, torch.zeros(1, 2), sf.Cosine())
