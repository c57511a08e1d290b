"""The shipped models: small enough to ship, and what they draw is what was asked for."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import sfumato as sf
from sfumato.storage import ZOO, zoo_names


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def test_the_zoo_has_its_models():
    assert {"digits", "fashion"} <= set(zoo_names())


@pytest.mark.parametrize("name", zoo_names())
def test_a_model_is_small(name):
    assert sum(path.stat().st_size for path in (ZOO / name).rglob("*") if path.is_file()) <= 8_000_000


def test_digits_are_read_as_what_they_are():
    """By a classifier trained on the real ones, which has never seen a sample."""
    images, labels = load_digits(return_X_y=True)
    judge = SVC(gamma=0.001).fit(images, labels)
    samples = sf.load("zoo:digits").sample(200)
    seen = judge.predict(samples.values.reshape(200, 64).astype(float) * 16 / 255)
    assert (seen == samples.labels).mean() > 0.93


def test_fashion_samples_lie_nearest_to_their_own_class():
    """Class means tell real training images apart 68 times in 100; samples must not do worse."""
    data = sf.data.fashion_small()
    means = np.stack([data.values[data.labels == c].mean(0) for c in range(10)]).reshape(10, -1)
    samples = sf.load("zoo:fashion").sample(60, steps=10)
    distance = ((samples.values.reshape(60, 1, -1) - means) ** 2).sum(2)
    assert (distance.argmin(1) == samples.labels).mean() > 0.6


def test_a_sample_of_the_zoo_does_not_depend_on_its_batch():
    run = sf.load("zoo:fashion")
    whole, cut = run.sample(8, steps=6, batch=8).values.astype(int), run.sample(8, steps=6, batch=3).values.astype(int)
    assert np.abs(whole - cut).max() <= 1
