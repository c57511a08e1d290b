"""Where the time of a forward pass and of a training step goes, by kind of operation: writes operations.md beside this file.

    python benchmarks/operations.py [--threads 1]

"Before" uses torch's kernels, "after" sfumato's. Convolutions and products are compared with a product of large matrices, by the number of
operations of a plain convolution: Winograd's algorithm needs fewer, so it can exceed 100%. The rest is compared with a copy of large
tensors, by the bytes read and as many written as the largest input has: more than 100% means that the data are in the cache.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from quality.protocol import processor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sfumato.bench.compare import ceiling
from sfumato.kernels import choice
from sfumato.kernels.build import compiled
from sfumato.nets import PatchUNet, UNet, UNetLayout
from sfumato.runtime import keep_memory

HERE = Path(__file__).parent
KINDS = {  # the first whose words are in an operation's name
    "convolutions": ("winograd", "convolution"),
    "products": ("bmm", "baddbmm", "addmm", "aten::mm"),
    "normalisation and activation": ("norm", "silu", "gelu"),
    "softmax": ("softmax",),
    "copies": ("copy_", "cat", "clone", "fill_", "zero_", "select", "as_strided", "empty", "resize"),
}
ARITHMETIC = ("convolutions", "products")


def kind_of(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "the rest")


def profiled(call: Callable[[], object]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds and bytes of one call, by kind."""
    call()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        call()
    seconds: dict[str, float] = defaultdict(float)
    moved: dict[str, int] = defaultdict(int)
    for event in record.events():
        if event.name.startswith(("aten::", "sfumato")):
            kind = kind_of(event.name)
            seconds[kind] += event.self_cpu_time_total / 1e6
            if event.self_cpu_time_total > 5 and event.input_shapes:
                sizes = [prod(shape) for shape in event.input_shapes if shape]
                moved[kind] += 4 * (sum(sizes) + max(sizes, default=0))
    return seconds, moved


def counted(call: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations of one call with torch's kernels, by kind."""
    with FlopCounterMode(display=False) as counter:
        call()
    flops: dict[str, int] = defaultdict(int)
    for operator, count in counter.get_flop_counts()["Global"].items():
        flops[kind_of(str(operator).replace(".", "::"))] += count
    return flops


def copied() -> float:
    """Bytes a second of a large copy, read and written."""
    a, seconds = torch.randn(16_000_000), []
    for _ in range(6):
        start = time.perf_counter()
        a.clone()
        seconds.append(time.perf_counter() - start)
    return 2 * 4 * a.numel() / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    keep_memory()
    if not compiled():
        raise SystemExit("there is no compiled kernel to compare: see the log.")
    flops, bandwidth = ceiling(torch.float32, torch.get_num_threads()), copied()
    lines = [
        "# Where the time goes",
        "",
        f"Written by `operations.py` on {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32. "
        f"A product of large matrices does {flops / 1e9:.0f} GFLOP/s, a copy of 64 MB {bandwidth / 1e9:.1f} GB/s (read and written): "
        "the two limits. The first line of each table takes most of the time.",
        "",
    ]
    torch.manual_seed(0)
    layout = UNetLayout(head_width=8, heads=1, scales=False)
    models = {
        "A plain U-Net (64, 128, 128) on 3×32×32": (UNet((3, 32, 32), layout), (3, 32, 32), 16),
        "The fashion recipe's network on 1×28×28": (PatchUNet((1, 28, 28), widths=(64, 224), heads=7), (1, 28, 28), 64),
        "The folder recipe's network on 3×64×64": (PatchUNet((3, 64, 64), widths=(64, 128, 192), depth=1), (3, 64, 64), 16),
    }
    for title, (net, shape, batch) in models.items():
        net = net.to(memory_format=torch.channels_last)
        x, log_snr = torch.randn(batch, *shape).to(memory_format=torch.channels_last), torch.randn(batch)
        forward = torch.no_grad()(lambda net=net, x=x, log_snr=log_snr: net(x, log_snr))
        step = lambda net=net, x=x, log_snr=log_snr: net(x, log_snr).square().mean().backward()  # noqa: E731
        for what, call in (("forward", forward), ("forward and backward", step)):
            net.requires_grad_(what != "forward")
            choice.use(net, False)
            found, work = {}, counted(call)
            for name in ("before", "after"):
                choice.use(net, name == "after")
                found[name] = profiled(call)
            totals = {name: sum(seconds.values()) for name, (seconds, _) in found.items()}
            lines += [f"## {title}, batch {batch}: {what}", ""]
            ratio = totals["before"] / totals["after"]
            lines += [f"{1e3 * totals['before']:.0f} ms before, {1e3 * totals['after']:.0f} ms after: {ratio:.2f} times as fast.", ""]
            lines += [
                "| operations | before, ms | after, ms | share after | rate after | of the ceiling |",
                "| --- | ---: | ---: | ---: | ---: | ---: |",
            ]
            seconds, moved = found["after"]
            for kind in sorted(seconds.keys() | found["before"][0].keys(), key=lambda kind: -seconds.get(kind, 0.0)):
                was, now = found["before"][0].get(kind, 0.0), seconds.get(kind, 0.0)
                amount, best, unit = (work[kind], flops, "GFLOP/s") if kind in ARITHMETIC else (moved.get(kind, 0), bandwidth, "GB/s")
                rate = amount / now if now else 0.0
                share = [f"{now / totals['after']:.0%}", f"{rate / 1e9:.1f} {unit}", f"{rate / best:.0%}"]
                lines.append(f"| {kind} | {1e3 * was:.1f} | {1e3 * now:.1f} | {' | '.join(share)} |")
            lines.append("")
    (HERE / "operations.md").write_text("\n".join(lines).rstrip() + "\n")
    print((HERE / "operations.md").read_text())


if __name__ == "__main__":
    main()
