"""Who reads the class of a sample for label accuracy: always another network than the one whose features are used."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfumato.data.fashion import FASHION_CLASSES
from sfumato.data.source import Source
from sfumato.evaluation.reference import Reference, training_rows
from sfumato.metrics.judges import load_judge
from sfumato.model import Model

LEARNT = 4000  # examples that a support-vector machine is fitted on
TESTED = 2000  # other ones that it is tested on


@dataclass(frozen=True)
class Judge:
    """A function of x0 [n, *x] to class numbers [n], and how often it reads real data right."""

    name: str
    sha256: str
    read: Callable[[np.ndarray], Any]
    real: float | None = None
    real_count: int | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Class numbers."""
        told = np.asarray(self.read(x))
        return told.argmax(1) if told.ndim == 2 else told.astype(np.int64)


def judge_for(given: Any, model: Model | None, reference: Reference, features: Sequence[str]) -> Judge:
    """The judge that is asked for; else a network that ships for these classes, or a support-vector machine of the data's own labels.

    The machine is fitted on rows that the model was trained on, where these are at hand and others than the reference.

    Raises:
        ValueError: data without labels, a judge that is the network of the features, or an unknown one.
    """
    source = reference.source
    if callable(given):
        return _tested(Judge(getattr(given, "name", "own"), getattr(given, "sha256", ""), given), source, slice(None))
    classes = source.spec.classes
    name = given or ("fashion" if classes == FASHION_CLASSES and source.spec.shape == (1, 28, 28) else "svm")
    if name in features:
        raise ValueError(f"{name} cannot judge labels, as it is the network of the features; name another judge, or other features.")
    if name not in ("fashion", "svm"):
        raise ValueError(f'there is no judge "{name}"; there are fashion and svm, a support-vector machine of the data.')
    if name == "fashion":
        found = load_judge()
        return _tested(Judge("judge-fashion", found.sha256, found), source, slice(None))
    if not classes:
        raise ValueError(f"{source.name} has no labels to learn a judge from; give a --judge, or leave accuracy out of --metrics.")
    training = training_rows(model, reference)[0] if reference.split == "held-out" else source
    return _support_vectors(training, source)


def _support_vectors(source: Source, tested: Source) -> Judge:
    """Fitted on some of the data, tested on others."""
    try:
        from sklearn.svm import SVC
    except ImportError:
        raise ValueError("the judge of classes needs scikit-learn; run pip install 'sfumato[metrics]'.") from None

    order = np.random.default_rng(0).permutation(len(source))
    learnt = np.sort(order[: min(LEARNT, len(order) // 2 if tested is source else len(order))])
    batch = source.batch(learnt)
    labels, x = batch.cond["labels"].value.numpy(), batch.x.numpy().reshape(len(learnt), -1)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{source.name}: a judge needs examples of two classes at least; leave accuracy out of --metrics.")
    machine = SVC().fit(x, labels)
    digest = hashlib.sha256(f"svc {source.fingerprint()} {learnt.tolist()}".encode()).hexdigest()
    judge = Judge("svm", digest, lambda x: machine.predict(np.asarray(x).reshape(len(x), -1)))
    return _tested(judge, tested, slice(len(learnt) if tested is source else 0, None))


def _tested(judge: Judge, source: Source, which: slice) -> Judge:
    """With the share of real data that it reads right."""
    if not source.spec.classes:
        return judge
    rows = np.sort(np.random.default_rng(0).permutation(len(source))[which][:TESTED])
    right = []
    for start in range(0, len(rows), 500):
        batch = source.batch(rows[start : start + 500])
        right.append(judge(batch.x.numpy()) == batch.cond["labels"].value.numpy())
    told = np.concatenate(right)
    return Judge(judge.name, judge.sha256, judge.read, float(told.mean()), len(told))
