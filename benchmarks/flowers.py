"""Latent compared with pixel diffusion on images of 64×64 with classes: images a second at equal parameters, quality after equal minutes.

    sfumato train folder --set data.path=FLOWERS.zip --set net.widths=[64,128,248] --set net.heads=8 --set net.middle=caca \
        --set training.held_out=0.02 --steps 1300 --out runs/flowers-pixel
    sfumato train ldm-flowers --set data.path=FLOWERS.zip --out runs/flowers-latent
    python benchmarks/flowers.py runs/flowers-pixel runs/flowers-latent --out docs/latent/flowers

Speed: whole training steps, including data and optimiser, of the latent run's network and of a pixel network with as many parameters,
alternating; the median of each. Quality: the Fréchet distance between features of samples and of all images (the second-last layer of a
classifier that is trained here, for this page only: other pages have other features), and the share of samples that it assigns to the
requested class.
"""

import argparse
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from latent import described, speed_up
from quality.distance import frechet
from quality.protocol import processor
from torch import Tensor, nn

import sfumato as sf
from sfumato.data import Dataset
from sfumato.noise import seeded
from sfumato.pictures import sheet
from sfumato.recipe import load_recipe

EQUAL = ["net.widths=[64,128,248]", "net.heads=8", "net.middle=caca"]  # 5.4 million parameters, the recipe ldm has 5.6
ROUNDS, WARM, STEPS = 3, 3, 9


class Judge(nn.Module):
    """Convolutions on 2×2 blocks of pixels, 128 features, the classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [12, 48, 64, 128, 128]
        layers = []
        for inward, outward in pairwise(widths):
            layers += [nn.Conv2d(inward, outward, 3, padding=1, bias=False), nn.BatchNorm2d(outward), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(nn.PixelUnshuffle(2), *layers)
        self.dense, self.head = nn.Linear(128 * 4, 128), nn.Linear(128, classes)

    def features(self, x: Tensor) -> Tensor:
        """[n, 128] of images [n, 3, 64, 64] in [-1, 1]."""
        return F.gelu(self.dense(self.body(x).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(x), 0.3, self.training))


def judge(dataset: Dataset, epochs: int) -> tuple[Judge, float]:
    """A classifier of nine tenths of the images, and its accuracy on the rest."""
    kept, held = dataset.split_indices(0.1, 0)
    torch.manual_seed(0)
    net, generator = Judge(len(dataset.classes)), seeded(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    warming = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(kept) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(kept), generator=generator).split(64):
            if len(rows) < 64:
                continue
            batch = dataset.batch(kept[rows.numpy()])
            x, labels = batch.x, batch.cond["labels"].value
            x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)
            shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
            loss = F.cross_entropy(net(x.roll(shift, (2, 3))), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warming.step()
    net.eval()
    batch = dataset.batch(held)
    return net, float((seen(net, batch.x)[1] == batch.cond["labels"].value.numpy()).mean())


@torch.no_grad()
def seen(net: Judge, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features in double precision, and predicted classes."""
    features = torch.cat([net.features(part) for part in x.split(200)])
    return features.double().numpy(), net.head(features).argmax(1).numpy()


def rate(recipe: sf.Recipe) -> float:
    """Images a second of training steps after the first few."""
    short = {"steps": STEPS, "log_every": WARM, "checkpoint_every": STEPS, "trackers": ()}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=short)})
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        calls = sf.Callbacks(on_log=lambda line: rates.append(line["images_per_second"]))
        sf.train(recipe, out=Path(folder) / "run", callbacks=calls)
    return statistics.median(rates[1:])


def speeds(latent: sf.Model, folder: Path) -> list[str]:
    """The lines of the table of speeds."""
    path = f"data.path={latent.recipe.data.path}"
    recipes = {"pixels": load_recipe("folder", [path, *EQUAL]), "latents": latent.recipe.stages(folder)[-1].recipe}
    found = {name: [] for name in recipes}
    for _ in range(ROUNDS):
        for name, recipe in recipes.items():
            found[name].append(rate(recipe))
    rows, median = [], {name: statistics.median(rates) for name, rates in found.items()}
    for name, spec in {"pixels": latent.spec, "latents": latent.network.latents}.items():
        net, shape = recipes[name].net.build(spec.sizes, spec.conditions), spec.sizes
        number = sum(parameter.numel() for parameter in net.parameters())
        spread = f"{median[name]:.1f} ({min(found[name]):.1f} … {max(found[name]):.1f})"
        rows.append(f"| {name}, {' × '.join(map(str, shape))} | {number:,} | {spread} | {median[name] / median['pixels']:.2f} |")
    return ["| diffusion of | parameters | images a second of training | ratio |", "| --- | ---: | ---: | ---: |", *rows]


def quality(runs: dict[str, tuple[Path, sf.Model]], dataset: Dataset, count: int, epochs: int, out: Path) -> list[str]:
    """The lines of the table of quality; sheets beside it."""
    net, accuracy = judge(dataset, epochs)
    batch = dataset.batch(np.arange(len(dataset)))
    x, labels = batch.x, batch.cond["labels"].value
    features, guesses = seen(net, x)
    mean, cov = features.mean(0), np.cov(features.T)

    def row(name: str, trained: str, part: np.ndarray, right: float) -> str:
        return f"| {name} | {trained} | {frechet(mean, cov, part.mean(0), np.cov(part.T)):.2f} | {right:.3f} |"

    some = np.random.default_rng(0).permutation(len(x))[:count]
    lines = [
        f"The classifier's accuracy on the held-out tenth of the images is {accuracy:.1%}. {count:,} samples each.",
        "",
        "| model | trained | Fréchet distance | requested class |",
        "| --- | --- | ---: | ---: |",
        row(f"*{count:,} of the images*", "", features[some], float((guesses == np.asarray(labels))[some].mean())),
    ]
    for name, (folder, run) in runs.items():
        samples = run.sample(count)
        sheet(samples.values[:64], columns=8).save(out / f"samples-{name}.png")
        part, guessed = seen(net, torch.cat([run.spec.codec.encode(values) for values in np.array_split(samples.values, 10)]))
        parameters, trained = described(folder)
        lines.append(row(name, f"{trained}; {parameters} parameters", part, float((guessed == samples.labels).mean())))
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pixel", type=Path)
    parser.add_argument("latent", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12, help="of the classifier")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pixel, latent = sf.load(options.pixel), sf.load(options.latent)
    if pixel.recipe.what == "latent-diffusion" or latent.recipe.what != "latent-diffusion":
        raise SystemExit("give a run of the recipe folder, then one of ldm-flowers.")
    speed_up((pixel, latent))
    options.out.mkdir(parents=True, exist_ok=True)
    text = [
        "# Latent compared with pixel diffusion",
        "",
        f"Written by `benchmarks/flowers.py` on {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}.",
        "",
        *speeds(latent, options.latent),
        "",
    ]
    print("\n".join(text), flush=True)
    runs = {"pixels": (options.pixel, pixel), "latents": (options.latent, latent)}
    text += [*quality(runs, latent.recipe.data.load(), options.count, options.epochs, options.out), ""]
    for name in runs:
        text += [f"Samples of {name}:", "", f"![samples](samples-{name}.png)", ""]
    (options.out / "flowers.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
