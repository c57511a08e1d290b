"""The plain baseline: a class-conditional diffusion transformer in one file, with nothing clever in it.

The network is the DiT of Peebles & Xie (2023), arXiv:2212.09748, on 4x4 patches; preconditioning, training levels, weight and
sampling grid are those of Karras et al. (2022), arXiv:2206.00364, table 1; the sampler is DPM-Solver++(2M) of Lu et al. (2022),
arXiv:2211.01095, algorithm 2, unguided.

    python benchmarks/quality/train_transformer.py --minutes 10 --out runs/quality/transformer-10
"""

import argparse
import copy
import math
from itertools import pairwise

import protocol
import torch
from torch import Generator, Tensor, nn

SIGMA_DATA = 0.5
NO_LABEL = protocol.CLASSES
IN_BFLOAT16 = protocol.precision() == torch.bfloat16


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def sinusoids(position: Tensor, width: int) -> Tensor:
    """Sines and cosines of `position` at width / 2 frequencies from 1 down to 1e-4."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = position[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; the gates start at zero (AdaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def attend(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: for 49 tokens the backward pass of F.scaled_dot_product_attention on a CPU takes 40% of the whole step.
        weights = (q @ k.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(dim=-1).type_as(v)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attend(modulate(self.norm(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm(x), shift2, scale2))


class Transformer(nn.Module):
    def __init__(self, *, size: int = 28, patch: int = 4, width: int = 192, depth: int = 8, heads: int = 6) -> None:
        super().__init__()
        self.patch, self.grid, self.width = patch, size // patch, width
        self.embed = nn.Linear(patch * patch, width)
        rows, columns = torch.meshgrid(torch.arange(self.grid).float(), torch.arange(self.grid).float(), indexing="ij")
        place = torch.cat([sinusoids(rows.flatten(), width // 2), sinusoids(columns.flatten(), width // 2)], dim=1)
        self.register_buffer("place", place)
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(protocol.CLASSES + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, patch * patch)
        self.apply(self.start)
        for layer in [*(block.condition[1] for block in self.blocks), self.condition[1], self.out]:
            nn.init.zeros_(layer.weight)

    @staticmethod
    def start(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        b, g, p = len(x), self.grid, self.patch
        tokens = x.view(b, g, p, g, p).transpose(2, 3).reshape(b, g * g, p * p)
        h = self.embed(tokens) + self.place
        c = self.level(sinusoids(1000 * noise, self.width)) + self.label(label)
        for block in self.blocks:
            h = block(h, c)
        h = self.out(modulate(self.norm(h), *self.condition(c).chunk(2, dim=1)))
        return h.view(b, g, g, p, p).transpose(2, 3).reshape(b, 1, g * p, g * p)


def denoise(net: nn.Module, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """D(x; sigma) = c_skip x + c_out F(c_in x; log(sigma) / 4), sigma [b]; the network in bfloat16 where that is fast, the rest never."""
    s = sigma[:, None, None, None]
    total = s**2 + SIGMA_DATA**2
    with torch.autocast("cpu", torch.bfloat16, enabled=IN_BFLOAT16):
        y = net(x / total.sqrt(), sigma.log() / 4, label)
    return SIGMA_DATA**2 / total * x + s * SIGMA_DATA / total.sqrt() * y.float()


def loss(net: nn.Module, x0: Tensor, label: Tensor, generator: Generator) -> Tensor:
    """Mean of (sigma² + sigma_data²) / (sigma sigma_data)² · (D - x0)², log sigma ~ N(-1.2, 1.2²), one label in ten dropped."""
    sigma = (1.2 * torch.randn(len(x0), generator=generator) - 1.2).exp()
    label = torch.where(torch.rand(len(x0), generator=generator) < 0.1, NO_LABEL, label)
    eps = torch.randn(x0.shape, generator=generator)
    error = denoise(net, x0 + sigma[:, None, None, None] * eps, sigma, label) - x0
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return (weight * error.square().flatten(1).mean(1)).mean()


def karras_grid(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """`steps` levels from sigma_max down to sigma_min, then 0."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def sample(net: nn.Module, label: Tensor, steps: int, generator: Generator) -> Tensor:
    """DPM-Solver++(2M), `steps` evaluations; the last step, to sigma = 0, returns the denoised image."""
    sigmas = karras_grid(steps).tolist()
    x, before = sigmas[0] * torch.randn(len(label), 1, 28, 28, generator=generator), None
    for i, (t, s) in enumerate(pairwise(sigmas)):
        x0 = denoise(net, x, torch.full((len(x),), t), label)
        if s == 0:
            return x0
        estimate = x0
        if before is not None:
            ratio = math.log(t / s) / (2 * math.log(sigmas[i - 1] / t))
            estimate = x0 + ratio * (x0 - before)
        x, before = s / t * x + (1 - s / t) * estimate, x0
    raise ValueError(f"sample needs at least one step, got {steps}.")


def train(args: argparse.Namespace, net: Transformer) -> tuple[Transformer, dict[str, object]]:
    """The averaged network, and what its training took."""
    x, labels = protocol.training_set(args.data)
    generator = Generator().manual_seed(args.seed)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    progress = protocol.Progress(protocol.allowed(args), args.batch)
    cut_off = args.out / "cut-off.pt"
    if args.resume and cut_off.exists():  # begins a new epoch
        kept = torch.load(cut_off, weights_only=True)
        for part, state in zip((net, ema, optimizer), kept["states"], strict=True):
            part.load_state_dict(state)
        generator.set_state(kept["generator"])
        progress.losses, progress.times = kept["losses"], kept["times"]
        progress.start -= progress.times[-1]
    for x0, label in protocol.batches(x, labels, args.batch, generator):
        if progress.fraction >= 1:
            break
        warm_up = min(1.0, (progress.steps + 1) / 100)
        optimizer.param_groups[0]["lr"] = args.lr * warm_up * 0.5 * (1 + math.cos(math.pi * progress.fraction))
        value = loss(net, x0, label, generator)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        n = progress.steps
        torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - min(0.9995, (1 + n) / (10 + n)))
        progress.add(value.item())
        if progress.steps % 200 == 0 and not args.measure:
            states = [part.state_dict() for part in (net, ema, optimizer)]
            kept = {"states": states, "generator": generator.get_state(), "losses": progress.losses, "times": progress.times}
            torch.save(kept, cut_off.with_suffix(".partial"))
            cut_off.with_suffix(".partial").replace(cut_off)
    return ema, progress.report()


def main() -> None:
    parser = protocol.options("Train and sample the plain transformer.", batch=128, sampling_batch=250, sampling_steps=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    protocol.prepare(args)
    net = Transformer()
    if args.sample_only:
        trained = protocol.restore(args.out, net)
    else:
        net, trained = train(args, net)
        if args.measure:
            print(trained)
            return
        protocol.keep(args.out, net, trained)

    generator = Generator().manual_seed(args.seed + 1)
    images, wanted, seconds = protocol.draw(
        lambda label: sample(net, label, args.sampling_steps, generator), args.count, args.sampling_batch
    )
    report = {
        "name": "transformer",
        "minutes": args.minutes,
        "seed": args.seed,
        "images_per_second": args.rate,
        **trained,
        **seconds,
        "parameters": sum(p.numel() for p in net.parameters()),
        "sampler": f"DPM-Solver++(2M), Karras grid, {args.sampling_steps} evaluations, unguided",
        "settings": {
            "network": "DiT, patch 4, width 192, depth 8, heads 6, AdaLN-zero",
            "batch": args.batch,
            "optimizer": f"AdamW, lr {args.lr:g}, betas (0.9, 0.99), weight decay 0.01, clip 1",
            "lr": "100 warm-up steps, cosine to 0 at the end of the budget",
            "precision": "bfloat16 autocast" if IN_BFLOAT16 else "float32",
            "ema": "min(0.9995, (1 + n) / (10 + n))",
            "label_dropout": 0.1,
        },
    }
    protocol.write(args.out, images, wanted, report, [])


if __name__ == "__main__":
    main()
