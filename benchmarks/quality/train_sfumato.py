"""sfumato's recipe `fashion`, its number of steps fitted to the budget.

The rate decays to zero over the run, so the length must be known before: a few steps are timed on the machine first, outside the budget.
The report gives the budget that the run really took. Samples are drawn by the recipe's own sampler, with the guidance asked for.
"""

import json
import shutil

import protocol  # first: it settles how waiting threads behave
import torch

import sfumato as sf
from sfumato.runtime import keep_memory
from sfumato.train.loop import train
from sfumato.train.recipe import load_recipe


def main() -> None:
    parser = protocol.options(__doc__.splitlines()[0], batch=64, sampling_batch=100, sampling_steps=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    args = parser.parse_args()
    protocol.prepare(args)
    keep_memory()
    base = [f"data.path={args.data}", f"training.batch={args.batch}", f"training.seed={args.seed}", *args.changes]
    quiet = ["training.checkpoint_every=10000000", "training.log_every=100"]
    run_folder = args.out / "run"
    if not args.sample_only:
        steps = round(60 * args.minutes / seconds_a_step(base, args))
        shutil.rmtree(run_folder, ignore_errors=True)
        recipe = load_recipe("fashion", [*base, *quiet, f"training.warmup={max(20, steps // 20)}"], steps=steps)
        clock = protocol.Clock(args.minutes)
        train(recipe, run_folder, watch=lambda record: print(json.dumps(record), flush=True))
        (args.out / "clock.json").write_text(json.dumps({"train_seconds": clock.spent, "train_wall_seconds": clock.wall}))
    run, clock = sf.load(run_folder), json.loads((args.out / "clock.json").read_text())
    options = run.recipe.training

    def sampler(labels: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        rows, drawn = range(drawn, drawn + len(labels)), drawn + len(labels)
        return walk(rows, args.seed, labels, None)

    drawn, walk = 0, run.walk(steps=args.sampling_steps, guidance=args.guidance)
    images, labels, seconds = protocol.draw(sampler, args.count, args.sampling_batch)
    report = {
        "name": "sfumato" if args.guidance == 1 else f"sfumato, guidance {args.guidance:g}",
        "minutes": args.minutes,
        **clock,
        "steps": options.steps,
        "images": options.steps * options.batch,
        "images_per_second": round(options.steps * options.batch / clock["train_seconds"], 1),
        "parameters": sum(p.numel() for p in run.denoiser.parameters()),
        "sampler": f"DPM-Solver++(2M), {args.sampling_steps}",
        "settings": run.recipe.model_dump(mode="json"),
        **seconds,
    }
    protocol.write(args.out, images, labels, report, ["sfumato", "safetensors"])


def seconds_a_step(base: list[str], args: object) -> float:
    """Budget seconds a step, by a short run that is thrown away."""
    folder = args.out / "timing"
    shutil.rmtree(folder, ignore_errors=True)
    spent = []
    recipe = load_recipe("fashion", [*base, "training.checkpoint_every=10000000", "training.log_every=20"], steps=81)
    clock = protocol.Clock(1)
    train(recipe, folder, watch=lambda record: spent.append((record["step"], clock.spent)))
    shutil.rmtree(folder)
    (first, start), (last, stop) = spent[0], spent[3]
    return (stop - start) / (last - first)


if __name__ == "__main__":
    main()
