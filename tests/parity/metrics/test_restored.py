"""PSNR and SSIM beside scikit-image's."""

import numpy as np
import pytest

from sfumato.metrics import psnr, ssim


def pair(channels):
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 256, (3, 24, 31, channels), dtype=np.uint8)
    noisy = truth + generator.normal(0, 40, truth.shape)
    return noisy.clip(0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_are_those_of_scikit_image(channels):
    metrics = pytest.importorskip("skimage.metrics")
    restored, truth = pair(channels)
    wanted = [metrics.peak_signal_noise_ratio(t, r, data_range=255) for r, t in zip(restored, truth, strict=True)]
    np.testing.assert_allclose(psnr(restored, truth), wanted, rtol=1e-12)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": 2, "full": True}
    maps = [metrics.structural_similarity(t, r, **options)[1] for r, t in zip(restored, truth, strict=True)]
    np.testing.assert_allclose(ssim(restored, truth), [each[5:-5, 5:-5].mean() for each in maps], rtol=1e-10)
