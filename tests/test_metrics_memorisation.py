"""Copies of training data are found, shifted ones too; a model that copies nothing is not accused."""

import numpy as np
import pytest

from sfumato.data import fashion_small
from sfumato.metrics import memorisation


@pytest.fixture(scope="module")
def images():
    """Training, held-out, and other images as bytes [n, h, w, c]: those of a model that is as good as the data."""
    source = fashion_small()
    values = np.asarray(source.values)[:2400]
    values = values[..., None] if values.ndim == 3 else values
    return values[:1600], values[1600:2000], values[2000:2400]


def test_a_healthy_model_is_not_accused(images):
    training, held_out, healthy = images
    found = memorisation(healthy, training, held_out)
    assert not found.has_copies
    assert found.share < 0.04
    assert "no sign of copies" in found.sentence


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 1)])
def test_a_copier_is_found(images, shift):
    """One sample in ten is a training image, as it is or a pixel off; the nearest pairs are these."""
    training, held_out, samples = images
    samples = samples.copy()
    samples[5::10] = np.roll(training[100:140], shift, axis=(1, 2))
    found = memorisation(samples, training, held_out, pairs=40)
    assert found.has_copies
    assert found.copies == pytest.approx(0.1, abs=0.02)
    assert {(int(a), int(b)) for a, b in found.pairs} == {(5 + 10 * i, 100 + i) for i in range(40)}
    assert "copies; look at the nearest pairs" in found.sentence


def test_floats_and_bytes_are_the_same_images(images):
    training, held_out, samples = (each[:200] for each in images)
    floats = [np.moveaxis(each, 3, 1) / 127.5 - 1 for each in (samples, training, held_out)]
    np.testing.assert_allclose(memorisation(*floats).ratios, memorisation(samples, training, held_out).ratios, atol=1e-5)


def rows(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 6))


def test_fresh_draws_are_not_accused_and_copies_are():
    """Points: of twenty models that draw from the law none is accused, and one that copies every tenth is."""
    training, held_out = rows(500, 0), rows(300, 1)
    assert not any(memorisation(rows(300, 2 + seed), training, held_out).has_copies for seed in range(20))
    copier = rows(300, 2)
    copier[:30] = training[:30] + 1e-3
    found = memorisation(copier, training, held_out)
    assert found.has_copies
    assert found.ratios[:30].max() < 0.01
    direct = np.sort(np.linalg.norm(copier[50] - training, axis=1))
    assert found.ratios[50] == pytest.approx(direct[0] / direct[1])


REFUSALS = {
    "few": (lambda: memorisation(rows(5, 0), rows(5, 1), rows(99, 2)), "100 held-out ones, got 5, 5 and 99"),
    "shapes": (lambda: memorisation(rows(5, 0)[:, :2], rows(5, 1), rows(100, 2)), "must be of one shape and type"),
    "nan": (lambda: memorisation(rows(5, 0) * np.nan, rows(5, 1), rows(100, 2)), "samples must be finite"),
    "small": (lambda: memorisation(*[np.zeros((100, 2, 2, 1), np.uint8)] * 3), "2×2 cannot be shifted by 1 pixels"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_told_is_refused(name):
    call, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=sentence):
        call()
