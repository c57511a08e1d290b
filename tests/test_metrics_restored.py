"""PSNR and SSIM by hand."""

import numpy as np
import pytest

from sfumato.metrics import psnr, ssim


def test_psnr_by_hand():
    """An error of 16 of 255 levels everywhere, and none."""
    truth = np.full((2, 12, 12, 1), 100, np.uint8)
    restored = truth.copy()
    restored[0] += 16
    assert psnr(restored, truth).tolist() == [pytest.approx(20 * np.log10(255 / 16)), np.inf]
    floats = [np.moveaxis(each, 3, 1) / 255.0 for each in (restored, truth)]
    assert psnr(floats[0], floats[1], data_range=1.0)[0] == pytest.approx(20 * np.log10(255 / 16))


def test_ssim_of_flat_images_is_the_term_of_luminance():
    """Without structure: (2 a b + c) / (a² + b² + c), c = (0.01 · 255)²."""
    a, b, c = 100.0, 150.0, 2.55**2
    first, second = (np.full((1, 12, 15, 3), value, np.uint8) for value in (100, 150))
    assert ssim(first, second)[0] == pytest.approx((2 * a * b + c) / (a * a + b * b + c))
    assert ssim(first, first)[0] == pytest.approx(1.0)


def test_ssim_of_scaled_noise_is_the_term_of_contrast():
    """Noise about 100, s times as strong in one: 2 s / (1 + s²) where the constants are small, and -1 for its mirror image."""
    noise = np.random.default_rng(0).normal(size=(1, 1, 32, 32))
    assert ssim(100 + 0.5 * noise, 100 + noise, data_range=1e-3)[0] == pytest.approx(0.8, abs=0.001)
    assert ssim(100 - noise, 100 + noise, data_range=1e-3)[0] == pytest.approx(-1.0, abs=0.001)
    # (0.03 · range)² of the noise's own variance: (2 s + 1) / (1 + s² + 1).
    assert ssim(100 + 0.5 * noise, 100 + noise, data_range=100 / 3)[0] == pytest.approx(2 / 2.25, abs=0.02)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [(((1, 12, 12, 1), (1, 12, 13, 1)), "one shape and type"), (((1, 10, 12, 1), (1, 10, 12, 1)), "at least 11×11, .* got 10×12")],
)
def test_images_that_cannot_be_compared_are_refused(shapes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ssim(*(np.zeros(shape, np.uint8) for shape in shapes))
