"""denoising-diffusion-pytorch's class-conditional U-Net and GaussianDiffusion, trained with the settings of its Trainer.

From the package: Adam (lr 1e-4, betas (0.9, 0.99)) at a constant rate, batch 16, gradients clipped at 1, EMA 0.995 every 10 steps,
labels dropped for half of the images, noise prediction under its cosine schedule of 1000 steps, float32. Ours: the loop (its Trainer
takes no labels and reads folders), no flips, three resolutions in place of four (28 halves twice only), and sampling without guidance,
as for everyone here (its default scale of 6 trades variety away), by its own DDIM sampler: 50 steps at eta 0, which Song et al. (2021),
arXiv:2010.02502, table 1, found better than 100 at the package's default of eta 1; `--eta 1` and `--sampling-steps` choose otherwise.

    PYTHONPATH=benchmarks/quality/stubs .venv-peers/bin/python benchmarks/quality/train_ddp.py \\
        --minutes 10 --snapshot 3 --out runs/quality/ddp-10
"""

import argparse
from pathlib import Path

import protocol
import torch
from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Generator, Tensor


class Unguided(Unet):
    """Samples at guidance 1 with one evaluation a step.

    At cond_scale=1 the package's forward_with_cond_scale returns one tensor where its caller unpacks two.
    """

    def forward_with_cond_scale(self, x: Tensor, time: Tensor, classes: Tensor, **ignored: float) -> tuple[Tensor, Tensor]:
        output = self.forward(x, time, classes, cond_drop_prob=0.0)
        return output, output


def train(args: argparse.Namespace, diffusion: GaussianDiffusion) -> None:
    """Leaves the averaged weights of every stage (the snapshot, if there is one, and the end) in its folder."""
    x, labels = protocol.training_set(args.data)
    generator = Generator().manual_seed(args.seed)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True)
    ema = EMA(diffusion, beta=0.995, update_every=10)
    progress, stages = protocol.Progress(protocol.allowed(args), args.batch), folders(args)
    for x0, label in protocol.batches(x, labels, args.batch, generator):
        if progress.fraction * args.minutes >= min(stages):
            if args.measure:
                print(progress.report())
                return
            protocol.keep(stages.pop(min(stages)), ema.ema_model, progress.report())
        if not stages:
            break
        value = diffusion((x0 + 1) / 2, classes=label)
        value.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        progress.add(value.item())


def folders(args: argparse.Namespace) -> dict[float, Path]:
    """By minutes, the folder that gets the weights of that moment."""
    stages = {args.minutes: args.out}
    if args.snapshot:
        stages[args.snapshot] = args.out.with_name(f"{args.out.name}-at-{args.snapshot:g}")
    return stages


def main() -> None:
    parser = protocol.options("Train and sample denoising-diffusion-pytorch.", batch=16, sampling_batch=32, sampling_steps=50)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--eta", type=float, default=0.0, help="the package's ddim_sampling_eta, 1 by its default")
    parser.add_argument(
        "--snapshot", type=float, help="also sample the weights after so many minutes: the rate is constant, so this equals a shorter run"
    )
    args = parser.parse_args()
    protocol.prepare(args)
    net = Unguided(dim=24, num_classes=protocol.CLASSES, dim_mults=(1, 2, 4), channels=1)
    diffusion = GaussianDiffusion(net, image_size=28, sampling_timesteps=args.sampling_steps, ddim_sampling_eta=args.eta)
    if not args.sample_only:
        train(args, diffusion)
    if args.measure:
        return

    for minutes, folder in sorted(folders(args).items()):
        trained = protocol.restore(folder, diffusion)
        diffusion.eval().to(memory_format=torch.channels_last)
        torch.manual_seed(args.seed + 1)
        images, wanted, seconds = protocol.draw(lambda label: 2 * diffusion.sample(label) - 1, args.count, args.sampling_batch)
        report = {
            "name": "denoising-diffusion-pytorch",
            "minutes": minutes,
            "seed": args.seed,
            "images_per_second": args.rate,
            **trained,
            **seconds,
            "parameters": sum(p.numel() for p in net.parameters()),
            "sampler": f"its ddim_sample, eta {args.eta:g}, {args.sampling_steps} evaluations, unguided",
            "settings": {
                "network": "Unet, dim 24, dim_mults (1, 2, 4)",
                "batch": args.batch,
                "optimizer": f"Adam, lr {args.lr:g}, betas (0.9, 0.99), clip 1",
                "lr": "constant",
                "precision": "float32",
                "ema": "0.995 every 10 steps, ema-pytorch's warm-up",
                "label_dropout": net.cond_drop_prob,
            },
        }
        protocol.write(folder, images, wanted, report, ["denoising-diffusion-pytorch", "ema-pytorch"])


if __name__ == "__main__":
    main()
