"""Operators: their decompositions against the matrix, convolutions against SciPy's, resizing against torch's, and what they refuse."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from sfumato import restoration
from sfumato.restoration.operators import conjugate_gradients
from sfumato.restoration.tasks import kernel_of, operator_of

MODES = {"circular": "wrap", "zeros": "constant", "reflect": "mirror", "replicate": "nearest"}  # SciPy's names
KERNELS = {"odd": (3, 5), "even": (4, 2), "mixed": (3, 4), "full height": (6, 3)}


def kernel(name: str, *, product: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows, columns = KERNELS[name]
    if product:
        return torch.rand(rows, 1, generator=generator) * torch.rand(1, columns, generator=generator)
    return torch.rand(rows, columns, generator=generator)


def mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4


def pair() -> restoration.Function:
    a = torch.randn(7, 12, generator=torch.Generator().manual_seed(3)).double()
    return restoration.Function(lambda x: x.flatten(1) @ a.mT.to(x), lambda y: (y @ a.to(y)).reshape(-1, 3, 4), shape=(3, 4))


CASES = {
    "matrix": (lambda: restoration.Matrix(torch.randn(5, 12)), (12,)),
    "tall matrix": (lambda: restoration.Matrix(torch.randn(20, 12)), (12,)),
    "matrix of lesser rank": (lambda: restoration.Matrix(torch.randn(6, 2) @ torch.randn(2, 12)), (12,)),
    "mask": (lambda: restoration.Mask(mask(6, 8), shape=(3, 6, 8)), (3, 6, 8)),
    "mask of channels": (lambda: restoration.Mask(mask(3, 4, 5)), (3, 4, 5)),
    "pool": (lambda: restoration.AveragePool(2), (3, 6, 8)),
    "pool of a series": (lambda: restoration.AveragePool(3), (2, 9)),
    "bicubic": (lambda: restoration.Bicubic(2), (1, 6, 8)),
    "bicubic by 4": (lambda: restoration.Bicubic(4), (3, 8, 12)),
    "grey": (lambda: restoration.Grey(), (3, 4, 6)),
    "hadamard": (lambda: restoration.Hadamard(20, (4, 4, 4)), (4, 4, 4)),
    "gaussian": (lambda: restoration.Gaussian(20, (3, 4, 6)), (3, 4, 6)),
    "identity": (lambda: restoration.Identity(), (2, 3)),
    "pair": (pair, (3, 4)),
    "blur of a series": (lambda: restoration.Blur(torch.tensor([0.2, 0.5, 0.3])), (2, 9)),
    "mask of a blur": (lambda: restoration.Mask(mask(6, 8), shape=(3, 6, 8)) @ restoration.Blur(kernel("odd")), (3, 6, 8)),
    "pool of grey": (lambda: restoration.AveragePool(2) @ restoration.Grey(), (3, 6, 8)),
    **{
        f"blur {name} {padding}{' product' * product} {channels}": (
            lambda name=name, padding=padding, product=product: restoration.Blur(kernel(name, product=product), padding=padding),
            (channels, 6, 8),
        )
        for name, padding, product, channels in [
            ("odd", "circular", False, 1),
            ("even", "circular", False, 3),
            ("mixed", "circular", True, 3),
            ("odd", "zeros", True, 3),
            ("even", "reflect", True, 1),
            ("mixed", "replicate", True, 3),
            ("even", "zeros", False, 1),
            ("full height", "circular", False, 3),
        ]
    },
}


@pytest.fixture(params=CASES, ids=list(CASES))
def linear(request):
    make, shape = CASES[request.param]
    return make().at(shape)


def test_the_adjoint_is_the_transpose(linear):
    """<H x, y> = <x, Hᵀ y> for a basis of y."""
    torch.testing.assert_close(linear.adjoint(torch.eye(linear.m)), linear.matrix, rtol=0, atol=1e-12)


def test_the_svd_is_one(linear):
    """V is orthogonal, U has orthonormal columns, H = U S Vᵀ."""
    svd, h = linear.svd, linear.matrix
    v, u = svd.from_v(torch.eye(linear.d)).T, svd.from_u(torch.eye(linear.d)).T[:, svd.seen]
    torch.testing.assert_close(v.T @ v, torch.eye(linear.d), rtol=0, atol=1e-12)
    torch.testing.assert_close(u.T @ u, torch.eye(int(svd.seen.sum())), rtol=0, atol=1e-12)
    cut = 2e-7 * float(svd.singular.max())  # singular values below 1e-7 of the largest count as 0
    torch.testing.assert_close(u * svd.singular[svd.seen] @ v[:, svd.seen].T, h, rtol=0, atol=cut)
    x, y = torch.randn(3, linear.d), torch.randn(3, linear.m)
    torch.testing.assert_close(svd.to_v(x), x @ v)
    torch.testing.assert_close(svd.to_u(y)[:, svd.seen], y @ u)
    assert int(svd.seen.sum()) == int(torch.linalg.matrix_rank(h, rtol=1e-7))  # below it the cut counts them as 0


def test_the_pseudo_inverse_meets_penroses_four_conditions(linear):
    h = linear.matrix
    inverse = linear.adjoint(linear.solve(torch.eye(linear.m), 1.0, 0.0)).T
    scale = inverse.abs().max()
    assert (h @ inverse @ h - h).abs().max() < 1e-9 * scale
    assert (inverse @ h @ inverse - inverse).abs().max() < 1e-9 * scale**2
    assert (h @ inverse - (h @ inverse).T).abs().max() < 1e-9 * scale
    assert (inverse @ h - (inverse @ h).T).abs().max() < 1e-9 * scale


def test_regularised_systems_and_their_determinants(linear):
    y, h = torch.randn(2, linear.m), linear.matrix
    system = 0.7 * h @ h.T + 0.2 * torch.eye(linear.m)
    torch.testing.assert_close(linear.solve(y, 0.7, torch.tensor([[0.2], [0.2]])), torch.linalg.solve(system, y.T).T)
    torch.testing.assert_close(linear.log_determinant(0.7, torch.tensor([[0.2], [0.2]])), torch.logdet(system).expand(2))


def test_conjugate_gradients_solve_what_has_no_svd():
    h = torch.randn(6, 9)
    r = torch.randn(3, 6)
    r[1] = 0
    found = conjugate_gradients(lambda v: v @ (h @ h.T) + 0.1 * v, r, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(h @ h.T + 0.1 * torch.eye(6), r.T).T)


def test_large_operators_without_an_svd_are_solved_by_conjugate_gradients():
    blur = restoration.Blur(kernel("mixed"), padding="zeros").at((1, 40, 40))
    assert blur.svd is None
    r = torch.randn(2, blur.m)
    found = blur.solve(r, 0.5, 0.3)
    torch.testing.assert_close(0.5 * blur.forward(blur.adjoint(found)) + 0.3 * found, r, rtol=0, atol=1e-4)


@pytest.mark.parametrize("padding", MODES)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_blur_is_scipys_convolution(padding, name, channels):
    x, k = torch.randn(2, channels, 6, 8), kernel(name)
    ours = restoration.Blur(k, padding=padding).forward(x)
    theirs = [[ndimage.convolve(plane, k.numpy(), mode=MODES[padding]) for plane in picture] for picture in x.numpy()]
    torch.testing.assert_close(ours, torch.from_numpy(np.array(theirs)))


def test_pooling_and_bicubic_are_torchs():
    x = torch.rand(2, 3, 12, 20)
    torch.testing.assert_close(restoration.AveragePool(4).forward(x), torch.nn.functional.avg_pool2d(x, 4))
    theirs = torch.nn.functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(restoration.Bicubic(4).forward(x), theirs, rtol=0, atol=1e-6)


def test_a_mask_reads_the_damaged_picture_and_looks_at_nothing_that_is_hidden():
    seen = mask(4, 5)
    operator, x = restoration.Mask(seen, shape=(2, 4, 5)), torch.randn(3, 2, 4, 5)
    damaged = torch.where(seen, x, torch.nan)
    torch.testing.assert_close(operator.read(damaged), operator.forward(x))
    torch.testing.assert_close(operator.adjoint(operator.forward(x)), torch.where(seen, x, 0))


def test_hadamard_rows_are_those_of_sylvesters_matrix():
    operator = restoration.Hadamard(8, (8,), seed=3)
    h = torch.ones(1, 1)
    for _ in range(3):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    torch.testing.assert_close(operator.at((8,)).matrix, h / 8**0.5 * operator.signs.double())


def test_products_act_from_the_right():
    x = torch.randn(2, 3, 6, 8)
    product = restoration.AveragePool(2) @ restoration.Grey() @ restoration.Blur(kernel("odd"))
    by_hand = restoration.AveragePool(2).forward(restoration.Grey().forward(restoration.Blur(kernel("odd")).forward(x)))
    torch.testing.assert_close(product.forward(x), by_hand)
    assert product.input((1, 3, 4)) == (3, 6, 8)


REFUSED = {
    "a mask that hides all": (lambda: restoration.Mask(torch.zeros(4, 4)), "hides everything"),
    "a mask of another size": (lambda: restoration.Mask(mask(4, 5), shape=(1, 6, 6)), "they must agree"),
    "a mask for another x": (lambda: restoration.Mask(mask(4, 5)).at((1, 4, 5)), r"for x of shape \[4, 5\]"),
    "a kernel that sums to nothing": (lambda: restoration.Blur(torch.tensor([[1.0, -1.0]])), "not sum to 0"),
    "a kernel with NaN": (lambda: restoration.Blur(torch.tensor([[1.0, torch.nan]])), "must be finite"),
    "a kernel larger than x": (lambda: restoration.Blur(torch.ones(9, 9)).at((1, 6, 8)), "larger than x"),
    "a kernel of other axes": (lambda: restoration.Blur(torch.ones(3)).at((1, 6, 8)), "1 axes"),
    "an unknown padding": (lambda: restoration.Blur(torch.ones(3, 3), padding="same"), '"same"'),
    "a factor that does not divide": (lambda: restoration.AveragePool(4).at((1, 28, 30)), "4 does not divide"),
    "a factor of one": (lambda: restoration.Bicubic(1), "at least 2"),
    "pooling of a vector": (lambda: restoration.AveragePool(2).at((8,)), "behind the channels"),
    "grey of one channel": (lambda: restoration.Grey().at((1, 4, 4)), "x has 1"),
    "a matrix of other width": (lambda: restoration.Matrix(torch.ones(3, 5)).at((6,)), r"shape \[5\]"),
    "a matrix for another shape": (lambda: restoration.Matrix(torch.ones(3, 5), shape=(2, 3)), "5 columns"),
    "a matrix of zeros": (lambda: restoration.Matrix(torch.zeros(3, 5)), "is zero"),
    "a matrix with infinity": (lambda: restoration.Matrix(torch.tensor([[torch.inf]])), "not finite"),
    "hadamard of 28 × 28": (lambda: restoration.Hadamard(10, (1, 28, 28)), "power of 2"),
    "more rows than entries": (lambda: restoration.Hadamard(10, (8,)), "1 to 8"),
    "a wrong adjoint": (lambda: restoration.Function(lambda x: 2 * x, lambda y: y, shape=(3,)), "not the transpose"),
    "an adjoint of another shape": (lambda: restoration.Function(lambda x: x[:, :2], lambda y: y, shape=(3,)), "back to the shape"),
    "a map that is not linear": (lambda: restoration.Function(lambda x: x + 1, lambda y: y, shape=(3,)), "not"),
    "operators that do not join": (lambda: restoration.Mask(mask(4, 4), shape=(1, 4, 4)) @ restoration.Matrix(torch.ones(3, 5)), "gives"),
    "an unknown task": (lambda: operator_of("sharpen", (1, 8, 8)), "inpaint, upscale"),
    "inpainting without a mask": (lambda: operator_of("inpaint", (1, 8, 8)), "needs --mask"),
    "a factor for a blur": (
        lambda: operator_of("deblur", (1, 8, 8), factor=2, kernel=torch.ones(3, 3)),
        "--factor is for the task upscale",
    ),
    "an unknown kernel": (lambda: kernel_of("disk:3"), "gaussian:SIGMA"),
    "a kernel without a number": (lambda: kernel_of("gaussian:wide"), "gaussian:SIGMA"),
}


@pytest.mark.parametrize("case", REFUSED, ids=list(REFUSED))
def test_what_cannot_be_is_refused_in_a_sentence(case):
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        make()


def test_kernels_by_name():
    gaussian = kernel_of("gaussian:1.5")
    torch.testing.assert_close(gaussian.sum(), torch.tensor(1.0))
    places = torch.arange(gaussian.shape[0]) - gaussian.shape[0] // 2
    assert abs(float((gaussian.sum(0) * places**2).sum()) - 1.5**2) < 0.1
    torch.testing.assert_close(kernel_of("box:4"), torch.full((4, 4), 1 / 16))
