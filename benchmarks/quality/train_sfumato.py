"""sfumato's recipe `fashion`, its number of steps fitted to the budget.

Samples are drawn by the recipe's own sampler, with the guidance asked for.
"""

import argparse
import contextlib
import json
import shutil

import protocol
import torch

import sfumato as sf
from sfumato.kernels import choice
from sfumato.recipe import load_recipe
from sfumato.runtime import keep_memory


def main() -> None:
    parser = protocol.options(__doc__.splitlines()[0], batch=64, sampling_batch=100, sampling_steps=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    args = parser.parse_args()
    protocol.prepare(args)
    keep_memory()
    base = [f"data.path={args.data}", f"training.batch={args.batch}", f"training.seed={args.seed}", *args.changes]
    quiet = ["training.checkpoint_every=500", "training.log_every=100"]
    run_folder = args.out / "run"
    if not args.sample_only:
        if args.measure:
            measure(base, args)
            return
        steps = protocol.allowed(args) // args.batch
        if not args.resume:
            shutil.rmtree(run_folder, ignore_errors=True)
        recipe = load_recipe("fashion", [*base, *quiet, f"training.warmup={max(20, steps // 20)}"], steps=steps)
        calls = sf.Callbacks(on_log=lambda record: print(json.dumps(record), flush=True))
        sf.train(recipe, out=run_folder, resume=args.resume, callbacks=calls)
    run = sf.load(run_folder)
    choice.use(run.network.net, choice.is_faster())
    options = run.recipe.training

    def sampler(labels: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        rows, drawn = range(drawn, drawn + len(labels)), drawn + len(labels)
        cond = {name: condition.to(run.device) for name, condition in run.conditions(range(len(labels)), labels).items()}
        return run.sampler(sf.Request(rows, args.seed, run.device, cond, asked))

    drawn, asked = 0, {"steps": args.sampling_steps, "guidance": args.guidance}
    images, labels, seconds = protocol.draw(sampler, args.count, args.sampling_batch)
    report = {
        "name": "sfumato" if args.guidance == 1 else f"sfumato, guidance {args.guidance:g}",
        "minutes": args.minutes,
        "seed": args.seed,
        "images_per_second": args.rate,
        "train_wall_seconds": json.loads((run_folder / "report.json").read_text())["seconds"],
        "steps": options.steps,
        "images": options.steps * options.batch,
        "parameters": sum(p.numel() for p in run.network.parameters()),
        "sampler": f"{run.recipe.sampling.sampler} on {run.recipe.sampling.spacing} levels, {args.sampling_steps}",
        "settings": run.recipe.model_dump(mode="json"),
        **seconds,
    }
    protocol.write(args.out, images, labels, report, ["sfumato", "safetensors"])


def measure(base: list[str], args: argparse.Namespace) -> None:
    """Prints the images a second of a run of 60 s that is thrown away."""
    folder = args.out / "timing"
    shutil.rmtree(folder, ignore_errors=True)
    progress = protocol.Progress(None, args.batch)
    recipe = load_recipe("fashion", [*base, "training.checkpoint_every=10000000"], steps=1_000_000)
    with contextlib.suppress(sf.Stopped):
        calls = sf.Callbacks(on_step=lambda step, loss: progress.add(loss), should_stop=lambda: progress.fraction >= 1)
        sf.train(recipe, out=folder, callbacks=calls)
    shutil.rmtree(folder)
    print(json.dumps(progress.report()))


if __name__ == "__main__":
    main()
