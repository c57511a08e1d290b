"""sfumato trains, samples, guides, measures and explains diffusion models on your own data."""

from sfumato import data, guide, likelihood, loss, nets, noise, oracle, probability, process, verify
from sfumato.classifier import Classifier
from sfumato.denoiser import Cond, Denoiser, Predictor
from sfumato.noise import normal_like, row_generators
from sfumato.oracle import Gaussian, GaussianMixture, LinearGaussianChain, Points
from sfumato.prediction import (
    Prediction,
    Target,
    edm_target,
    eps_target,
    flow_target,
    previous_target,
    score_target,
    v_target,
    x0_target,
)
from sfumato.process import Normal
from sfumato.run import Run, load
from sfumato.sample import Step, encode_decode, flow, grid, interpolate, invert, progressive, sample, slerp, spacing, steps
from sfumato.schedule import (
    VE,
    Continuous,
    Cosine,
    Discrete,
    Flow,
    LearnedSchedule,
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
    "Classifier",
    "Cond",
    "Continuous",
    "Cosine",
    "Denoiser",
    "Discrete",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "LearnedSchedule",
    "Level",
    "LinearGaussianChain",
    "LinearVP",
    "Normal",
    "Points",
    "Prediction",
    "Predictor",
    "Run",
    "Schedule",
    "Step",
    "SubVP",
    "Target",
    "data",
    "edm_target",
    "encode_decode",
    "eps_target",
    "flow",
    "flow_scales",
    "flow_target",
    "grid",
    "guide",
    "interpolate",
    "invert",
    "likelihood",
    "load",
    "loss",
    "nets",
    "noise",
    "normal_like",
    "oracle",
    "previous_target",
    "probability",
    "process",
    "progressive",
    "row_generators",
    "sample",
    "score_target",
    "slerp",
    "spacing",
    "steps",
    "sub_vp_scales",
    "v_target",
    "ve_scales",
    "verify",
    "vp_scales",
    "x0_target",
]
