"""Training a variational diffusion model, its schedule with it, into a run folder, and loading one as a `Run`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato import latent, loss, nets
from sfumato.denoiser import CondLike, Denoiser
from sfumato.form import Form
from sfumato.noise import seeded
from sfumato.run import Run, folder_of, read_form, read_tuned
from sfumato.schedule import LearnedSchedule
from sfumato.train.checkpoint import load_average
from sfumato.train.data_options import Data
from sfumato.train.loop import draw_samples, fit
from sfumato.train.opening import opening
from sfumato.train.options import Options
from sfumato.train.recipe import Net, Objective, Recipe, Runtime, Sampling, Training, read_tree, resolve
from sfumato.train.state import TrainState
from sfumato.train.vae import refuse_low_precision, refuse_other_values


class VDMModel(Options):
    """`latent.VDM`: where its schedule begins to learn, and what its network sees.

    `fourier` lists the n of the features sin and cos of 2^n pi x; `values` is how many evenly spaced values the data have in [-1, 1].
    """

    kind: Literal["vdm"] = "vdm"
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    width: int = Field(default=64, ge=1)
    fourier: tuple[Annotated[int, Field(ge=-4, le=12)], ...] = (7, 8)
    values: int = Field(default=256, ge=2)
    target: Literal["eps", "v", "edm", "x0"] = "v"

    @model_validator(mode="after")
    def _is_a_range(self) -> "VDMModel":
        self.schedule()
        return self

    @property
    def bin(self) -> float:
        """Distance of neighbouring values of the data in [-1, 1]."""
        return 2 / (self.values - 1)

    def schedule(self) -> LearnedSchedule:
        """The schedule, not yet taught."""
        return LearnedSchedule(log_snr_max=self.log_snr_max, log_snr_min=self.log_snr_min, width=self.width)


class VDMRecipe(Options):
    """Everything that makes a variational diffusion model."""

    about: str = ""
    model: VDMModel = VDMModel()
    data: Data
    net: Net
    training: Training = Training()
    runtime: Runtime = Runtime(precision="float32")
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _parts_agree(self) -> "VDMRecipe":
        refuse_low_precision(self.runtime)
        if self.sampling.log_snr_max is not None or self.sampling.log_snr_min is not None:
            raise ValueError("a learned schedule has its own ends; leave sampling.log_snr_max and log_snr_min out")
        self.as_denoiser()
        return self

    def as_denoiser(self) -> Recipe:
        """The recipe of the denoiser that it trains, as a `Run` reads it; its schedule is the learned one."""
        return Recipe(
            about=self.about,
            data=self.data,
            net=self.net,
            objective=Objective(target=self.model.target, values=self.model.values),
            training=self.training,
            runtime=self.runtime,
            sampling=self.sampling,
        )


def read(path: str | Path, changes: Sequence[str] = (), *, steps: int | None = None) -> VDMRecipe:
    """Reads a recipe, as `train.recipe.load_recipe` does."""
    return resolve(VDMRecipe, read_tree(path), changes, steps=steps, source=str(path))


def build(recipe: VDMRecipe, form: Form) -> latent.VDM:
    """The untrained model.

    Raises:
        ValueError: data that are no images: the bound's decoder is for values on a grid in [-1, 1].
    """
    if not form.is_bytes:
        raise ValueError(f"a vdm is for images of bytes, whose values lie on a grid; got {form.scaling.dtype} data of shape {form.shape}.")
    channels, powers = form.shape[0], recipe.model.fourier
    net = recipe.net.build((channels * (1 + 2 * len(powers)), *form.shape[1:]), len(form.classes), channels)
    if powers:
        net = nets.Fourier(net, powers)
    # Scaled as if the data had unit variance, x_t reaches the network as it is: only so do its Fourier features fit the grid of values.
    denoiser = Denoiser(net, recipe.as_denoiser().objective.build_target(), data_std=1.0)
    return latent.VDM(denoiser, recipe.model.schedule(), width=recipe.model.bin)


def load(model: str | Path, *, ema: float | None = None) -> Run:
    """Loads a run folder of this kind, with its learned schedule, and the averaged weights of its newest checkpoint that is whole.

    Raises:
        ValueError: there is no such model.
        CheckpointError: no checkpoint yet, or none that is whole.
    """
    folder = folder_of(model)
    recipe, form = read(folder / "recipe.yaml"), read_form(folder)
    built = build(recipe, form)
    load_average(built, folder, recipe.training.ema, ema)
    return as_run(str(model), recipe, form, built, read_tuned(folder))


def as_run(name: str, recipe: VDMRecipe, form: Form, model: latent.VDM, tuned: Mapping | None = None) -> Run:
    """The model as a run: its denoiser, under its own schedule."""
    return Run(name, recipe.as_denoiser(), form, model.denoiser, tuned or {}, learned=model.schedule)


def train(
    recipe: VDMRecipe,
    out: Path,
    *,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    watch: Callable[[Mapping[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains a variational diffusion model into the run folder `out` and returns it; the arguments are those of `loop.train`.

    The loss is the whole bound in bits/dim. metrics.jsonl also says the bound of held-out examples (of training ones, where none are
    held out; given their labels, where there are), and the ends that the schedule has reached.

    Raises:
        ValueError, CheckpointError, FloatingPointError, Stopped: as `loop.train` raises them.
    """
    start = opening(recipe, out, resume=resume, read=read, say=say)
    options, engine, form = recipe.training, start.engine, start.form
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = build(recipe, form).to(engine.device)
    state = TrainState.begin(model, options, loss.Stratified(model.schedule))
    as_run(str(out), recipe, form, model).walk()  # what sampling will refuse is refused before anything is written
    judged = start.held_out or start.examples
    x_judged, labels = judged.batch(np.random.default_rng(0).permutation(len(judged))[:64])
    refuse_other_values(x_judged, recipe.model.values, "model.values")
    x_judged, cond = x_judged.to(engine.device), None if labels is None else {"labels": labels.to(engine.device)}

    def bound(model: latent.VDM, x0: Tensor, eps: Tensor, t: Tensor, cond: CondLike | None) -> Tensor:
        return model.loss(x0, eps, t, cond)

    def measure() -> dict[str, float]:
        bits = latent.vdm.bound(
            model.denoiser,
            x_judged,
            model.schedule,
            cond,
            draws=4,
            width=model.width,
            generator=seeded(0, 0),
            times=seeded(0, 1),
        ).total
        ends = {"log_snr_max": model.schedule.log_snr_max.item(), "log_snr_min": model.schedule.log_snr_min.item()}
        return {"bits_per_dim": float(bits.mean()), **ends}

    fit(
        state,
        bound,
        start.examples,
        options,
        out,
        engine=engine,
        schedule=model.schedule,
        papers=start.papers,
        measure=measure,
        draw=lambda path: draw_samples(as_run(str(out), recipe, form, state.averaged()), path),
        on_step=on_step,
        watch=watch,
        say=say,
        should_stop=should_stop,
    )
    return out
