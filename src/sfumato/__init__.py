"""sfumato trains, samples, guides, measures and explains diffusion models on your own data."""

from sfumato import data, guide, likelihood, loss, nets, noise, oracle, process
from sfumato.denoiser import Cond, Denoiser, Predictor
from sfumato.noise import normal_like, row_generators
from sfumato.oracle import GaussianMixture
from sfumato.prediction import (
    Prediction,
    Target,
    edm_target,
    eps_target,
    flow_target,
    score_target,
    v_target,
    x0_target,
)
from sfumato.process import Normal
from sfumato.run import Run, load
from sfumato.sample import Step, grid, sample, spacing, steps
from sfumato.schedule import (
    VE,
    Continuous,
    Cosine,
    Discrete,
    Flow,
    Level,
    LinearVP,
    Schedule,
    SubVP,
    flow_scales,
    sub_vp_scales,
    ve_scales,
    vp_scales,
)

__version__ = "0.1.0"

__all__ = [
    "VE",
    "Cond",
    "Continuous",
    "Cosine",
    "Denoiser",
    "Discrete",
    "Flow",
    "GaussianMixture",
    "Level",
    "LinearVP",
    "Normal",
    "Prediction",
    "Predictor",
    "Run",
    "Schedule",
    "Step",
    "SubVP",
    "Target",
    "data",
    "edm_target",
    "eps_target",
    "flow_scales",
    "flow_target",
    "grid",
    "guide",
    "likelihood",
    "load",
    "loss",
    "nets",
    "noise",
    "normal_like",
    "oracle",
    "process",
    "row_generators",
    "sample",
    "score_target",
    "spacing",
    "steps",
    "sub_vp_scales",
    "v_target",
    "ve_scales",
    "vp_scales",
    "x0_target",
]
