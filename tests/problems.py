"""Known truths that many tests share."""

import math
import re

import pytest
import torch

import sfumato as sf

mixture = sf.GaussianMixture(
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=torch.float64),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]], [[0.1, -0.05], [-0.05, 0.1]]], dtype=torch.float64),
)

gaussian = sf.GaussianMixture(
    torch.ones(1, dtype=torch.float64),
    torch.tensor([[0.5, -1.0]], dtype=torch.float64),
    torch.tensor([[[0.8, 0.3], [0.3, 0.5]]], dtype=torch.float64),
)

SCALES = [sf.vp_scales, sf.ve_scales, sf.flow_scales, sf.sub_vp_scales]
every_scales = pytest.mark.parametrize("scales", SCALES, ids=lambda f: f.__name__)

SCHEDULES = [
    sf.Cosine(),
    sf.LinearVP(),
    sf.SubVP(),
    sf.VE(),
    sf.Flow(),
    sf.Discrete.linear(1000),
    sf.Discrete.cosine(200),
    sf.Discrete.sigmoid(100),
]
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda s: type(s).__name__ + str(len(s) if isinstance(s, sf.Discrete) else "")
)

TARGETS = [sf.x0_target, sf.eps_target, sf.v_target, sf.score_target, sf.flow_target, sf.edm_target]
every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda f: f.__name__)


few_steps = pytest.mark.filterwarnings("ignore:Heun's rule")  # over steps that are too long for it, as it says
long_walk = pytest.mark.usefixtures("unchecked")  # in conftest.py


def gaussian_flow(x: torch.Tensor, t: sf.Level, s: sf.Level) -> torch.Tensor:
    """The probability flow of `gaussian` from level t to s: along each axis of its covariance, standard scores are kept."""
    axes, variances, mean = gaussian.axes[0], gaussian.variances[0], gaussian.means[0]
    spread = lambda level: (level.alpha**2 * variances + level.sigma**2).sqrt()  # noqa: E731
    return s.alpha * mean + ((x - t.alpha * mean) @ axes * spread(s) / spread(t)) @ axes.T


def betas_of(levels: list[sf.Level]) -> torch.Tensor:
    """1 - (alpha_t/alpha_s)² along a VP chain of levels, noisiest first; in the papers' order."""
    alphas = torch.stack([level.alpha for level in levels])
    return (1 - (alphas[:-1] / alphas[1:]).square()).flip(0)


def counted(oracle: sf.Predictor) -> tuple[sf.Predictor, list[sf.Level]]:
    """A predictor that answers as the oracle does, and the levels that it has been asked at, one an evaluation."""
    asked = []

    def predict(x_t, level, cond=None):
        asked.append(level)
        return oracle(x_t, level)

    return predict, asked


LOG_2_PI = math.log(2 * math.pi)


def label(value: object) -> str:
    """A test's name for a value, the same in every process: no addresses, sets in order."""
    if isinstance(value, set):
        return str(sorted(value))
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", repr(value))
