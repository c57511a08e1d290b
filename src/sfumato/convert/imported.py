"""What becomes of a network that came from another library: a run."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import Classes
from sfumato.data import IMAGES
from sfumato.denoiser import Denoiser
from sfumato.form import Form
from sfumato.nets import UNet
from sfumato.prediction import Target, eps_target, v_target, x0_target
from sfumato.run import Run
from sfumato.schedule import Discrete
from sfumato.train.data_options import ElsewhereData
from sfumato.train.recipe import ChainSchedule, Objective, Recipe, Sampling, Training, UNetNet

OBJECTIVES: Mapping[Target, Objective] = {
    eps_target: Objective(target="eps", weight="eps"),
    x0_target: Objective(target="x0", weight="x0"),
    v_target: Objective(target="v", weight="v"),
}


def as_run(name: str, net: UNet, shape: tuple[int, ...], chain: Discrete, target: Target, sampling: Sampling) -> Run:
    """The network as a run. Its recipe has no data; twice the channels are a learned variance; classes have their numbers for names."""
    is_learned = net.head.out_channels == 2 * net.stem.in_channels
    objective = OBJECTIVES[target].model_copy(update={"loss": "hybrid", "variance": "learned"} if is_learned else {})
    recipe = Recipe(
        about=f"From {name}.",
        data=ElsewhereData(),
        net=UNetNet(**asdict(net.layout)),
        schedule=ChainSchedule(betas=tuple(chain.betas.tolist()), steps=len(chain)),
        objective=objective,
        training=Training(label_drop=0.0),
        sampling=sampling,
    )
    spec = net.condition.conditions.get("labels")
    form = Form(shape, spec.names if isinstance(spec, Classes) else (), IMAGES, 1.0)
    denoiser = Denoiser(net, target, variance="learned" if is_learned else "fixed")
    return Run(name, recipe, form, denoiser.eval().requires_grad_(False))


def knots(chain: Discrete) -> Float[Tensor, "steps"]:
    """The log-SNR of each step of a chain, in nats."""
    return chain.log_snr(torch.arange(1, len(chain) + 1, dtype=torch.float64) / len(chain))
