"""diffusers' UNet2DModel, class-conditional, trained with the settings of its unconditional training example.

From the example: AdamW (lr 1e-4, betas (0.95, 0.999), weight decay 1e-6), 500 warm-up steps and a cosine, batch 16, gradients clipped
at 1, noise prediction under DDPMScheduler's 1000 linear steps, EMA with inverse-gamma warm-up (1, 3/4, at most 0.9999), float32. Ours:
the cosine is fitted to the budget (time stands for steps), the network is scaled down from 64x64 colour images to 28x28 grey ones and
given the labels, and samples are drawn by the package's second-order DPM-Solver++ rather than by 1000 steps of DDPM.

    .venv-peers/bin/python benchmarks/quality/train_diffusers.py --minutes 10 --out runs/quality/diffusers-10
"""

import argparse
import math

import protocol
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Generator, Tensor

WARM_UP = 500


def network() -> UNet2DModel:
    """The example's block pattern, attention at the last resolution but one, at three resolutions: 28, 14, 7."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=protocol.CLASSES,
    )


def sample(net: UNet2DModel, scheduler: SchedulerMixin, label: Tensor, steps: int, generator: Generator) -> Tensor:
    scheduler.set_timesteps(steps)
    x = torch.randn(len(label), 1, 28, 28, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t, class_labels=label).sample, t, x, generator=generator).prev_sample
    return x


def train(args: argparse.Namespace, net: UNet2DModel, noising: DDPMScheduler) -> dict[str, object]:
    """Leaves the averaged weights in `net`; returns what the training took."""
    x, labels = protocol.training_set(args.data)
    generator = Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=True)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    progress, warm = protocol.Progress(protocol.allowed(args), args.batch), 0.0
    for x0, label in protocol.batches(x, labels, args.batch, generator):
        done = progress.fraction
        if done >= 1:
            break
        if progress.steps <= WARM_UP:
            warm, rate = done, progress.steps / WARM_UP
        else:
            rate = 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
        optimizer.param_groups[0]["lr"] = args.lr * rate
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, 1000, (len(x0),), generator=generator)
        value = F.mse_loss(net(noising.add_noise(x0, eps, t), t, class_labels=label).sample, eps)
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.step(net.parameters())
        optimizer.zero_grad()
        progress.add(value.item())
    ema.copy_to(net.parameters())
    return progress.report()


def main() -> None:
    parser = protocol.options("Train and sample diffusers' UNet2DModel.", batch=16, sampling_batch=50, sampling_steps=25)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--sampler", choices=["dpm-solver", "ddpm"], default="dpm-solver")
    args = parser.parse_args()
    protocol.prepare(args)
    net, noising = network(), DDPMScheduler(num_train_timesteps=1000)
    if args.sample_only:
        trained = protocol.restore(args.out, net)
    else:
        trained = train(args, net, noising)
        if args.measure:
            print(trained)
            return
        protocol.keep(args.out, net, trained)

    net.eval()
    generator = Generator().manual_seed(args.seed + 1)
    kind = DPMSolverMultistepScheduler if args.sampler == "dpm-solver" else DDPMScheduler
    scheduler = kind.from_config(noising.config)
    images, wanted, seconds = protocol.draw(
        lambda label: sample(net, scheduler, label, args.sampling_steps, generator), args.count, args.sampling_batch
    )
    report = {
        "name": "diffusers",
        "minutes": args.minutes,
        "seed": args.seed,
        "images_per_second": args.rate,
        **trained,
        **seconds,
        "parameters": net.num_parameters(),
        "sampler": f"{kind.__name__}, {args.sampling_steps} evaluations, unguided",
        "settings": {
            "network": "UNet2DModel, block_out_channels (32, 64, 64), 2 layers a block, attention at 14x14",
            "batch": args.batch,
            "optimizer": f"AdamW, lr {args.lr:g}, betas (0.95, 0.999), weight decay 1e-6, clip 1",
            "lr": f"{WARM_UP} warm-up steps, cosine to 0 at the end of the budget",
            "precision": "float32",
            "ema": "inverse gamma 1, power 3/4, at most 0.9999",
            "label_dropout": 0.0,
        },
    }
    protocol.write(args.out, images, wanted, report, ["diffusers"])


if __name__ == "__main__":
    main()
