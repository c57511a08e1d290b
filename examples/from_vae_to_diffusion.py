"""From a VAE to diffusion and latent diffusion: the derivations of the study notes in order, with a picture for each step.

Points in the plane and scikit-learn's digits are used as images, so that everything trains in minutes on one core. If a quantity has a
closed form, the script prints it next to the library's value.

Run: python examples/from_vae_to_diffusion.py [--out tour] [--quick]
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import sfumato as sf
from sfumato import latent
from sfumato.oracle.chain import Affine, LinearGaussianChain
from sfumato.pictures import sheet

STEPS: list[Callable[["Tour"], None]] = []


class Tour:
    """The output folder, and the models that later steps use."""

    def __init__(self, out: Path, quick: bool) -> None:
        self.out, self.quick = out, quick
        self.runs: dict[str, Path] = {}
        self.number = 0

    def figure(self, columns: int, title: str, width: float = 3.0, height: float = 3.0) -> tuple[Figure, list]:
        figure = Figure(figsize=(width * columns, height + 0.4), dpi=110, layout="constrained")
        figure.suptitle(title, fontsize=11)
        axes = figure.subplots(1, columns, squeeze=False)[0]
        return figure, list(axes)

    def keep(self, picture, name: str) -> None:  # a Figure or an image
        path = self.out / f"{self.number:02d}-{name}.png"
        picture.savefig(path) if isinstance(picture, Figure) else picture.save(path)
        print(f"    {path}")

    def train(self, name: str, *changes: str, steps: int) -> sf.Model:
        """A recipe by name, trained into a folder next to the pictures; trained once, then loaded."""
        out = self.out / "runs" / name
        if not (out / "report.json").exists() and not (out / "diffusion" / "report.json").exists():
            steps = steps // 10 if self.quick else steps
            recipe = sf.load_recipe(name, [*changes, "training.checkpoint_every=100000", "training.trackers=[]"], steps=steps)
            sf.train(recipe, out=out, resume=True, callbacks=sf.Callbacks(on_message=lambda text: print("    " + text)))
        return sf.load(out)


def step(function: Callable[[Tour], None]) -> Callable[[Tour], None]:
    STEPS.append(function)
    return function


def dots(axes, x, title="", colour="#30507a", limit=3.2) -> None:
    x = torch.as_tensor(x)
    axes.scatter(x[:, 0], x[:, 1], s=2, color=colour, alpha=0.5, linewidths=0)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=9)


def roll(count: int) -> torch.Tensor:
    return sf.data.toy("swiss-roll", 20_000, 0).batch(np.arange(count)).x.double()


def clouds(scale: float) -> sf.GaussianMixture:
    means = torch.tensor([[1.5, 0.6], [-1.2, 0.9], [0.0, -1.5]])
    covariances = torch.tensor([[[0.12, 0.05], [0.05, 0.06]], [[0.05, 0.0], [0.0, 0.2]], [[0.2, -0.06], [-0.06, 0.05]]])
    return sf.GaussianMixture(torch.tensor([0.35, 0.4, 0.25]), scale * means, scale**2 * covariances)


CLOUDS = clouds(1.0)  # an exact predictor: nothing to train


@step
def the_question(tour: Tour) -> None:
    """000, Introduction: how can we draw a new plausible point, given a set of points?"""
    figure, (a, b) = tour.figure(2, "A set of points, and a set of images: samples of an unknown p(x)")
    dots(a, roll(2000), "swiss roll")
    values = sf.data.digits().values[:36]
    b.imshow(np.asarray(sheet(values, columns=6, scale=4)), cmap="gray")
    b.set_axis_off()
    b.set_title("an image is a point in a space of 64 numbers", fontsize=9)
    tour.keep(figure, "data")


@step
def reparameterisation(tour: Tour) -> None:
    """000, Reparameterization Trick; 003 1.4.2.2: z = mean + std · eps moves the randomness into eps, which has no parameters."""
    eps = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.7], [0.7, 0.8]], dtype=torch.float64)
    z = torch.tensor([0.8, -0.5]) + eps @ torch.linalg.cholesky(covariance).T
    figure, (a, b) = tour.figure(2, "Reparameterisation: any Gaussian from the standard one")
    dots(a, eps, "eps ~ N(0, I)", "#999999")
    dots(b, z, "mean + factor · eps")
    tour.keep(figure, "reparameterisation")


@step
def evidence_and_its_bound(tour: Tour) -> None:
    """003 1.4.1, 002 ELBO: log p(x) = ELBO + KL(q ‖ p(z|x)), and more draws tighten the bound."""
    chain = LinearGaussianChain([Affine(torch.tensor([[1.2]]), torch.tensor([0.3]), torch.tensor([[0.4]]))])
    x, place = torch.tensor([[1.5]], dtype=torch.float64), torch.linspace(-1.5, 3.0, 60)
    posterior = chain.posterior
    bounds = [float(chain.elbo(x, Affine(torch.zeros(1, 1), torch.tensor([m]), posterior.covariance))) for m in place.tolist()]
    off = latent.VAE([ConstantEncoder(0.5, 0.3)], [LinearDecoder()], latent.Gaussian(), (1,))
    rows = x.float().repeat(3000, 1)
    draws = [1, 2, 4, 8, 16, 32, 64]
    weighted = [
        -float(latent.importance_bits(off, rows, draws=k, generator=torch.Generator().manual_seed(k)).mean()) * math.log(2) for k in draws
    ]
    truth = float(chain.log_prob(x))
    figure, (a, b) = tour.figure(2, "The evidence lower bound", 3.6)
    a.plot(place, bounds, label="ELBO of q = N(m, true variance)")
    a.axhline(truth, color="#b03030", label="log p(x)")
    a.axvline(float(posterior.mean(x)), color="#999999", lw=0.8, label="posterior mean")
    a.set(xlabel="m", ylabel="nats", ylim=(truth - 6, truth + 0.5))
    a.legend(fontsize=7)
    b.plot(draws, weighted, "o-", label="importance-weighted, K draws")
    b.axhline(truth, color="#b03030", label="log p(x)")
    b.set(xscale="log", xlabel="K")
    b.legend(fontsize=7)
    tour.keep(figure, "evidence")
    print(f"    log p(x) = {truth:.4f}; the bound of one draw {weighted[0]:.4f}, of {draws[-1]} draws {weighted[-1]:.4f}")


class ConstantEncoder(torch.nn.Module):
    """An encoder that returns N(mean, variance) for every input."""

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.law = torch.nn.Parameter(torch.tensor([mean, math.log(variance)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.law.expand(len(x), 2)


class LinearDecoder(torch.nn.Module):
    """p(x | z) = N(1.2 z + 0.3, 0.4)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([1.2 * z + 0.3, torch.full_like(z, math.log(0.4))], 1)


@step
def variational_autoencoder(tour: Tour) -> None:
    """000 2.1, 002 VAE, 003 1.4.2: a latent plane of digits."""
    run = tour.train("vae-digits", steps=700)
    digits = sf.data.digits()
    tour.keep(run.sampler.plane(16), "vae-plane")
    tour.keep(
        sheet(np.concatenate([digits.values[:10], run.reconstruct(digits.values[:10]), run.sample(10).values]), columns=10), "vae-digits"
    )
    batch = digits.batch(np.arange(1500))
    x0, labels = batch.x, batch.cond["labels"].value
    (z,) = run.network.encode(x0)
    figure, (a,) = tour.figure(1, "Latents of the ten digits", 4.5, 4.2)
    a.scatter(*z.T, c=labels, cmap="tab10", s=5)
    a.set_aspect("equal")
    tour.keep(figure, "vae-latents")
    bound = latent.bound(run.network, x0[:500], generator=torch.Generator().manual_seed(0))
    print(
        f"    {float(bound.decoder.mean()):.3f} for the pixels + {float(bound.prior.mean()):.3f} for the latent"
        f" = {float(bound.total.mean()):.3f} bits/dim"
    )


@step
def hierarchical(tour: Tour) -> None:
    """000 2.2, 002 HVAE: several levels of latents; each level's part of the bound."""
    run = tour.train("hvae-digits", steps=500)
    x0 = sf.data.digits().batch(np.arange(500)).x
    uses = latent.level_use(run.network, x0, generator=torch.Generator().manual_seed(0))
    for use in uses:
        print(f"    {use}")
    values = run.sample(20).values
    figure, (a, b) = tour.figure(2, "A hierarchical VAE: what each level carries", 3.4)
    a.bar([f"z_{use.level}\n{use.active}/{use.units} active" for use in uses], [use.nats for use in uses], color="#30507a")
    a.set_ylabel("KL, nats")
    b.imshow(np.asarray(sheet(values, columns=5, scale=4)), cmap="gray")
    b.set_axis_off()
    b.set_title("samples", fontsize=9)
    tour.keep(figure, "hierarchy")


@step
def an_encoder_that_nobody_trains(tour: Tour) -> None:
    """002 VDM (31), 004 Forward: latents as large as x, an encoder that only adds noise, and z_T that is independent of x."""
    x0, schedule = roll(2000), sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=x0.dtype)
    figure, axes = tour.figure(5, "The fixed encoder: q(x_t | x_0) in one step", 2.4, 2.4)
    for each, t in zip(axes, (0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
        level = schedule.level(t)
        dots(each, level.alpha * x0 + level.sigma * eps, f"t = {t:g}, log-SNR {float(level.log_snr):.1f}")
    tour.keep(figure, "forward")


@step
def one_bound(tour: Tour) -> None:
    """002 (58), 004: the hierarchical bound of that encoder equals the diffusion bound, part by part."""
    chain, small = sf.Discrete.cosine(20), clouds(1 / 3)
    x = (small.sample(400, torch.Generator().manual_seed(0))[0].clamp(-1, 1) * 127.5).round() / 127.5
    model = latent.as_hierarchical_vae(small, chain, jumps=True)
    ours = latent.bound(model, x, generator=torch.Generator().manual_seed(1))
    levels = sf.grid(chain, 20, spacing=sf.spacing.uniform)
    theirs = sf.likelihood.vlb(small, x, levels, generator=torch.Generator().manual_seed(1))
    figure, (a,) = tour.figure(1, "One bound: level by level, as a VAE's and as diffusion's", 7.0)
    names = ["L_T", *[str(k) for k in range(19, 0, -1)], "L_0"]
    parts = [torch.cat([b.prior[:, None], b.steps, b.decoder[:, None]], 1).mean(0) for b in (ours, theirs)]
    for shift, part, name in ((-0.2, parts[0], "latent.bound(as_hierarchical_vae(…))"), (0.2, parts[1], "likelihood.vlb(…)")):
        a.bar(np.arange(21) + shift, part, width=0.4, label=name)
    a.set_xticks(np.arange(21), names, fontsize=7)
    a.set_ylabel("bits/dim")
    a.legend(fontsize=8)
    tour.keep(figure, "one-bound")
    print(f"    {float(ours.total.mean()):.12f} and {float(theirs.total.mean()):.12f} bits/dim")


@step
def the_denoiser(tour: Tour) -> None:
    """002, 004 DDPM: a network that predicts the noise in x_t is all that the decoder needs."""
    run = tour.train("swiss-roll", "data.count=20000", "training.batch=512", steps=700)
    frames = []
    run.sample(1500, batch=1500, sampler="ancestral", steps=60, on_step=lambda i, x, x0: frames.append(x))
    figure, axes = tour.figure(5, "The reverse process: ancestral sampling, 60 steps", 2.4, 2.4)
    for each, k in zip(axes, (0, 20, 35, 48, 59), strict=True):
        dots(each, frames[k], f"step {k + 1}", limit=3.2)
    tour.keep(figure, "reverse")


@step
def noise_is_score(tour: Tour) -> None:
    """002 Tweedie (133), SGM: score = -eps/sigma points to the data; Langevin steps follow it."""
    grid = torch.stack(torch.meshgrid(torch.linspace(-3, 3, 22), torch.linspace(-3, 3, 22), indexing="xy"), -1).reshape(-1, 2).double()
    figure, axes = tour.figure(3, "The score of noised data, at three levels", 2.9)
    schedule = sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0)
    for each, t in zip(axes, (0.15, 0.45, 0.8), strict=True):
        level = schedule.level(t)
        x = level.alpha * CLOUDS.sample(1000, torch.Generator().manual_seed(0))[0]
        x = x + level.sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        dots(each, x, f"t = {t:g}", "#b9c6d8")
        arrows = CLOUDS(grid, level).score(level)
        arrows = arrows / (1 + arrows.norm(dim=1, keepdim=True))
        each.quiver(*grid.T, *arrows.T, color="#b03030", scale=28, width=0.004)
    tour.keep(figure, "score")


@step
def a_schedule_that_is_learned(tour: Tour) -> None:
    """002 VDM, in continuous time: the bound depends on the schedule's ends only, so its curve can be trained to lower the variance."""
    small = clouds(1 / 3)
    x0 = small.sample(500, torch.Generator().manual_seed(0))[0]
    schedule, t = sf.LearnedSchedule(log_snr_max=12.0, log_snr_min=-6.0), torch.linspace(0, 1, 101, dtype=torch.float64)

    def spread(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        times = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        rows = x0[torch.arange(20_000) % 500]
        eps = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=rows.dtype)
        return times, sf.loss.vdm(small, rows, eps, times, schedule).detach()

    before, first = schedule.log_snr(t).detach(), spread(1)
    curve = [schedule.slope, schedule.inward, schedule.bias, schedule.outward]
    optimizer, generator = torch.optim.Adam(curve, lr=0.03), torch.Generator().manual_seed(2)
    for _ in range(300):
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        value = latent.vdm.diffusion_bits(small, x0, eps, sf.loss.Stratified(schedule)(500, generator), schedule).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    last = spread(3)
    figure, (a, b) = tour.figure(2, "VDM: the learned schedule", 3.6)
    a.plot(t, before, color="#999999", label="at first")
    a.plot(t, schedule.log_snr(t).detach(), label="taught")
    a.set(xlabel="t", ylabel="log-SNR")
    a.legend(fontsize=8)
    for (times, bits), colour, name in ((first, "#999999", "at first"), (last, "#30507a", "trained")):
        b.plot(
            times.reshape(50, -1).mean(1),
            bits.reshape(50, -1).mean(1),
            color=colour,
            label=f"{name}: mean {bits.mean():.2f}, variance {bits.var():.1f}",
        )
    b.set(xlabel="t", ylabel="the integrand, bits/dim")
    b.legend(fontsize=7)
    tour.keep(figure, "learned-schedule")
    print(
        f"    bound {float(first[1].mean()):.3f} → {float(last[1].mean()):.3f} bits/dim, "
        f"variance {float(first[1].var()):.2f} → {float(last[1].var()):.2f}"
    )


@step
def fewer_steps(tour: Tour) -> None:
    """001 DDIM: the same marginals without noise, on any subset of the steps; and inversion."""
    schedule = sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0)
    noise = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    figure, axes = tour.figure(4, "Few steps: ancestral sampling and DDIM from the same noise", 2.5, 2.5)
    for each, (name, method, steps) in zip(
        axes,
        [
            ("ancestral", sf.steps.Ancestral(), 8),
            ("DDIM", sf.steps.DDIM(), 8),
            ("ancestral", sf.steps.Ancestral(), 50),
            ("DDIM", sf.steps.DDIM(), 50),
        ],
        strict=True,
    ):
        levels = sf.grid(schedule, steps)
        x = sf.sample(CLOUDS, levels[0].sigma * noise, levels, method, generator=torch.Generator().manual_seed(1))
        dots(each, x, f"{name}, {steps} steps")
    tour.keep(figure, "ddim")
    levels = sf.grid(schedule, 200)
    x = sf.sample(CLOUDS, levels[0].sigma * noise, levels, sf.steps.DDIM())
    back = sf.invert(CLOUDS, x, levels) / levels[0].sigma
    print(f"    noise → x → noise, 200 steps each: relative error {float((back - noise).norm() / noise.norm()):.1%}")


@step
def guidance(tour: Tour) -> None:
    """002 Guidance (166), 004: the effect of the label, scaled; 1 is the conditional model."""
    schedule = sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0)
    noise = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    figure, axes = tour.figure(4, "Classifier-free guidance towards the first cloud", 2.5, 2.5)
    levels = sf.grid(schedule, 50)
    for each, scale in zip(axes, (0.0, 0.5, 1.0, 4.0), strict=True):
        predict = sf.guide.classifier_free(CLOUDS, scale)
        x = sf.sample(predict, levels[0].sigma * noise, levels, sf.steps.DDIM(), {"labels": torch.zeros(1500, dtype=torch.long)})
        dots(each, x, f"scale {scale:g}")
    tour.keep(figure, "guidance")


@step
def diffusion_in_a_latent_space(tour: Tour) -> None:
    """004, Latent Diffusion: the autoencoder of the first part, and diffusion of its latents."""
    run = tour.train("ldm-digits", f"autoencoder_training.steps={40 if tour.quick else 400}", "autoencoder_training.trackers=[]", steps=700)
    digits = sf.data.digits()
    batch, back = digits.batch(np.arange(10)), run.reconstruct(digits.values[:10])
    tour.keep(sheet(np.concatenate([digits.values[:10], back, run.sample(40, labels=range(10)).values]), columns=10), "latent-diffusion")
    bound = run.sampler.bound(batch.x, batch.cond, values=17)
    print(f"    {float(bound.reconstruction.mean()):.2f} for the pixels + {float(bound.latent.mean()):.2f} for the latent, bits/dim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tour"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the training, for a quick test")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tour = Tour(options.out, options.quick)
    for each in STEPS:
        tour.number += 1
        print(f"{tour.number:2d}. {(each.__doc__ or '').strip()}", flush=True)
        each(tour)


if __name__ == "__main__":
    main()
