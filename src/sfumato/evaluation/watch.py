"""A figure of the averaged model every so many steps of its training, and the best checkpoint by it, kept apart."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import storage
from sfumato.data.source import Source
from sfumato.evaluation.features import default_features
from sfumato.evaluation.measures import DISTANCES, FeatureSet, default_metrics, name_of
from sfumato.metrics.features import Features, load_features
from sfumato.model import Model

BEST = "best"  # the folder in the run: a run folder itself, with one checkpoint
DATA = 10_000  # examples of the data that samples are held against, at most
ROWS = 256  # examples whose features are computed at once


@dataclass
class Watch:
    """What samples of a model that is being trained are held against.

    Args:
        judged: held-out examples, or the training ones where nothing is held out.
        chosen_on: what `judged` is, in words.
        count: samples that are drawn for each figure, always of the same noise.
        out: the run folder.
    """

    judged: Source
    chosen_on: str
    count: int
    out: Path
    features: Features = field(init=False)
    metric: str = field(init=False)

    def __post_init__(self) -> None:
        """Settles the metric by the form of the data.

        Raises:
            ValueError: examples whose size varies, or symbols, between which there is no distance.
        """
        spec = self.judged.spec
        if not self.judged.batch(np.zeros(1, dtype=np.int64)).x.is_floating_point() or None in spec.shape:
            raise ValueError(
                f"training.evaluate_every measures distances between examples of numbers of one size, which {self.judged.name} are not; "
                "set it to 0."
            )
        self.features = load_features(default_features(spec))
        wide = self.features.dim or int(np.prod(spec.sizes))
        few = min(self.count, len(self.judged)) <= wide
        self.metric = next(name for name in default_metrics(spec, has_labels=False, few=few) if name in DISTANCES and name != "columns")
        self._real: FeatureSet | None = None

    def figure(self, model: Model) -> tuple[str, float]:
        """The name and value of the figure of this model's samples; lower is better."""
        if self._real is None:
            rows = np.sort(np.random.default_rng(0).permutation(len(self.judged))[:DATA])
            parts = [self.judged.batch(rows[start : start + ROWS]).x.numpy() for start in range(0, len(rows), ROWS)]
            self._real = FeatureSet(np.concatenate([np.asarray(self.features(part)) for part in parts]), columns=self.judged.spec.columns)
        values = model.sample(self.count).values
        x = model.spec.codec.encode(values).numpy()
        mine = FeatureSet(np.concatenate([np.asarray(self.features(x[start : start + ROWS])) for start in range(0, len(x), ROWS)]))
        measure, estimate = next(iter(DISTANCES[self.metric](mine, self._real, 0).items()))
        return name_of(measure, self.features.name), estimate.value

    def best(self) -> float | None:
        """The best value so far; None where there is none."""
        try:
            return float(json.loads((self.out / BEST / "manifest.json").read_text())["best"]["value"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, state: Any, accumulator: Any, name: str, value: float) -> bool:
        """Keeps the checkpoint apart where it is the best so far, as a run folder of its own; whether it is.

        Raises:
            CheckpointError: it cannot be written.
        """
        before = self.best()
        if before is not None and value >= before:
            return False
        folder = self.out / BEST
        with storage.writing(folder):
            manifest = storage.read_manifest(self.out)
            chosen = {"step": state.step, "metric": name, "value": value, "count": self.count, "seed": 0, "chosen_on": self.chosen_on}
            folder.mkdir(exist_ok=True)
            shutil.copyfile(self.out / "recipe.yaml", folder / "recipe.yaml")
            state.save(folder / "checkpoints", accumulator, 1)
            storage.write_text(folder / "manifest.json", json.dumps({**manifest, "best": chosen}, indent=2, ensure_ascii=False))
        return True
