"""sfumato trains, samples, guides, measures and explains diffusion models on your own data."""

from sfumato import condition, convert, data, doctor, guide, latent, likelihood, loss, nets, noise, oracle, probability, process, verify
from sfumato.classifier import Classifier
from sfumato.condition import Cond, Condition, CondLike, as_cond
from sfumato.denoiser import Denoiser, Predictor
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
from sfumato.run import Run
from sfumato.sample import Flowed, Moment, Step, encode_decode, flow, grid, interpolate, invert, progressive, sample, slerp, spacing, steps
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
from sfumato.train.kinds import load
from sfumato.train.posthoc import reconstruct_ema
from sfumato.tune import BoundCosts, Fitted, Tuned, bound_costs, tune, tune_bound

__version__ = "0.1.0"

__all__ = [
    "VE",
    "BoundCosts",
    "Classifier",
    "Cond",
    "CondLike",
    "Condition",
    "Continuous",
    "Cosine",
    "Denoiser",
    "Discrete",
    "Fitted",
    "Flow",
    "Flowed",
    "Gaussian",
    "GaussianMixture",
    "LearnedSchedule",
    "Level",
    "LinearGaussianChain",
    "LinearVP",
    "Moment",
    "Normal",
    "Points",
    "Prediction",
    "Predictor",
    "Run",
    "Schedule",
    "Step",
    "SubVP",
    "Target",
    "Tuned",
    "as_cond",
    "bound_costs",
    "condition",
    "convert",
    "data",
    "doctor",
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
    "latent",
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
    "reconstruct_ema",
    "row_generators",
    "sample",
    "score_target",
    "slerp",
    "spacing",
    "steps",
    "sub_vp_scales",
    "tune",
    "tune_bound",
    "v_target",
    "ve_scales",
    "verify",
    "vp_scales",
    "x0_target",
]
