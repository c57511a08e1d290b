"""sfumato trains, samples, guides, measures and explains diffusion models on your own data."""

from sfumato import (
    condition,
    convert,
    data,
    doctor,
    guide,
    latent,
    likelihood,
    loss,
    metrics,
    nets,
    noise,
    oracle,
    probability,
    process,
    restoration,
    tasks,
    verify,
)
from sfumato.classifier import Classifier
from sfumato.classifiers import load_classifier, train_classifier
from sfumato.condition import Classes, Cond, Condition, ConditionSpec, CondLike, Map, Numbers, Sequence, Tokens, as_cond
from sfumato.data import Dataset, Scaling
from sfumato.data.options import register_data
from sfumato.data.source import Batch, DataSpec, Draw, Source, Stream
from sfumato.data.symbols import Vocabulary
from sfumato.denoiser import Denoiser, Predictor
from sfumato.deprecated import old_names
from sfumato.loading import load
from sfumato.model import Model
from sfumato.noise import normal_like, row_generators
from sfumato.options import Options, Runtime, Training
from sfumato.oracle import EmpiricalDistribution, Gaussian, GaussianMixture, LinearGaussianChain
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
from sfumato.recipe import load_recipe
from sfumato.restoration import restore
from sfumato.samples import Samples
from sfumato.sampling import (
    FlowResult,
    SamplingState,
    Step,
    encode_decode,
    flow,
    grid,
    interpolate,
    invert,
    progressive,
    sample,
    slerp,
    spacing,
    steps,
)
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
from sfumato.storage import CheckpointError
from sfumato.task import LossTerms, Recipe, Request, Sampler, Task, register
from sfumato.tasks import Diffusion
from sfumato.training import Callbacks, Ema, Stopped, reconstruct_ema, train
from sfumato.tuning import BoundCosts, FittedMultistep, TuningResult, bound_costs, tune, tune_bound

__version__ = "0.1.0"

__all__ = [
    "VE",
    "Batch",
    "BoundCosts",
    "Callbacks",
    "CheckpointError",
    "Classes",
    "Classifier",
    "Cond",
    "CondLike",
    "Condition",
    "ConditionSpec",
    "Continuous",
    "Cosine",
    "DataSpec",
    "Dataset",
    "Denoiser",
    "Diffusion",
    "Discrete",
    "Draw",
    "Ema",
    "EmpiricalDistribution",
    "FittedMultistep",
    "Flow",
    "FlowResult",
    "Gaussian",
    "GaussianMixture",
    "LearnedSchedule",
    "Level",
    "LinearGaussianChain",
    "LinearVP",
    "LossTerms",
    "Map",
    "Model",
    "Normal",
    "Numbers",
    "Options",
    "Prediction",
    "Predictor",
    "Recipe",
    "Request",
    "Runtime",
    "Sampler",
    "Samples",
    "SamplingState",
    "Scaling",
    "Schedule",
    "Sequence",
    "Source",
    "Step",
    "Stopped",
    "Stream",
    "SubVP",
    "Target",
    "Task",
    "Tokens",
    "Training",
    "TuningResult",
    "Vocabulary",
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
    "load_classifier",
    "load_recipe",
    "loss",
    "metrics",
    "nets",
    "noise",
    "normal_like",
    "oracle",
    "previous_target",
    "probability",
    "process",
    "progressive",
    "reconstruct_ema",
    "register",
    "register_data",
    "restoration",
    "restore",
    "row_generators",
    "sample",
    "score_target",
    "slerp",
    "spacing",
    "steps",
    "sub_vp_scales",
    "tasks",
    "train",
    "train_classifier",
    "tune",
    "tune_bound",
    "v_target",
    "ve_scales",
    "verify",
    "vp_scales",
    "x0_target",
]

__getattr__ = old_names(
    __name__, Points="EmpiricalDistribution", Flowed="FlowResult", Fitted="FittedMultistep", Moment="SamplingState", Tuned="TuningResult"
)
