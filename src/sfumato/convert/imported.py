"""A model from a network of another library."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data import IMAGES
from sfumato.data.options import ElsewhereData
from sfumato.data.source import DataSpec
from sfumato.denoiser import Denoiser
from sfumato.model import Model
from sfumato.nets import UNet
from sfumato.nets.options import UNetNet
from sfumato.options import Training
from sfumato.prediction import Target, eps_target, v_target, x0_target
from sfumato.recipe import recipe_of
from sfumato.schedule import Discrete
from sfumato.tasks import Diffusion
from sfumato.tasks.diffusion import Objective
from sfumato.tasks.options import ChainSchedule, Sampling

OBJECTIVES: Mapping[Target, Objective] = {
    eps_target: Objective(target="eps", weight="eps"),
    x0_target: Objective(target="x0", weight="x0"),
    v_target: Objective(target="v", weight="v"),
}


def as_model(name: str, net: UNet, shape: tuple[int, ...], chain: Discrete, target: Target, sampling: Sampling) -> Model:
    """The network as a model. Its recipe has no data; twice the channels mean a learned variance; classes are named by their numbers."""
    is_learned = net.head.out_channels == 2 * net.stem.in_channels
    objective = OBJECTIVES[target].model_copy(update={"loss": "hybrid", "variance": "learned"} if is_learned else {})
    task = Diffusion(
        net=UNetNet(**asdict(net.layout)),
        schedule=ChainSchedule(betas=tuple(chain.betas.tolist()), steps=len(chain)),
        objective=objective,
        sampling=sampling,
    )
    recipe = recipe_of(task, about=f"From {name}.", data=ElsewhereData(), training=Training(label_drop=0.0))
    denoiser = Denoiser(net, target, variance="learned" if is_learned else "fixed")
    spec = DataSpec(shape, IMAGES, net.condition.conditions, 1.0)
    return Model(name, recipe, spec, denoiser.eval().requires_grad_(False))


def knots(chain: Discrete) -> Float[Tensor, "steps"]:
    """The log-SNR of each step of a chain, in nats."""
    return chain.log_snr(torch.arange(1, len(chain) + 1, dtype=torch.float64) / len(chain))
