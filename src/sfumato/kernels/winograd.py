"""3×3 convolutions in float32 on CPUs with a quarter of the multiplications: F(4×4, 3×3) of Winograd.

Lavin & Gray (2015), arXiv:1509.09308, section 4.3, with the points 0, ±1, ±2, ∞: a 4×4 tile of the output is Aᵀ[(G w Gᵀ) ⊙ (Bᵀ d B)]A
of the 6×6 tile d of the input that it sees; over all tiles and channels the products are 36 products of matrices. The rounding error is
about four times that of the direct sum (2e-6 in the relative norm); for the gradient of the weights the two are equal.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from sfumato.kernels.build import LANES, HasKernel, channels_first, channels_last, operators


class Conv3x3(HasKernel, nn.Conv2d):
    """A 3×3 convolution of stride 1 that keeps the size of a map; by Winograd's algorithm if its kernel is on and fits."""

    _kept: tuple[tuple[int, int], Tensor] | None = None  # the transformed weight, and the version of the weight it was made from

    def __init__(self, inward: int, outward: int) -> None:
        """As `nn.Conv2d`."""
        super().__init__(inward, outward, 3, padding=1)

    def forward(self, input: Float[Tensor, "b c h w"], plus: Float[Tensor, "b d h w"] | None = None) -> Float[Tensor, "b d h w"]:
        """The convolution, plus `plus`."""
        if not (self.by_kernel and fits(input, self.weight)):
            y = super().forward(input)
            return y if plus is None else plus + y
        needs_gradient = any(tensor is not None and tensor.requires_grad for tensor in (input, self.weight, plus))
        if torch.is_grad_enabled() and needs_gradient:
            return conv3x3(input, self.weight, self.bias, plus)
        return _run(input, self._transformed(), self.bias, plus)

    def _transformed(self) -> Float[Tensor, "36 panels c 16"]:
        """The weight in the kernel's form; computed once for a frozen weight.

        The version of a trained weight is not reliable: a fused optimiser, or one that updates a view of it, does not increase it. An
        inference tensor has no version.
        """
        if self.weight.requires_grad or self.weight.is_inference():
            return operators("winograd").transform(self.weight.detach(), False)
        key = (self.weight.data_ptr(), self.weight._version)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, operators("winograd").transform(self.weight.detach(), False)
        return self._kept[1]


def fits(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"]) -> bool:
    """Whether these can be convolved here, and there is enough work to make it faster."""
    channels_fit = weight.shape[0] % LANES == 0 and weight.shape[1] % LANES == 0
    tiles = len(x) * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return channels_fit and tiles >= 16 and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def conv3x3(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 3 3"],
    bias: Float[Tensor, "d"] | None,
    plus: Float[Tensor, "b d h w"] | None = None,
) -> Float[Tensor, "b d h w"]:
    """`torch.nn.functional.conv2d` with padding 1, plus `plus`; with gradients of every order. The result is channels-last.

    Raises:
        RuntimeError: the kernels are not compiled; ask `build.compiled` first.
    """
    y = _Convolution.apply(x, weight, bias, plus)
    assert isinstance(y, Tensor)
    return y


def _run(x: Tensor, transformed: Tensor, bias: Tensor | None, plus: Tensor | None) -> Tensor:
    beside = None if plus is None else channels_last(plus)
    return channels_first(operators("winograd").forward(channels_last(x), transformed, bias, beside))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None
    ) -> Tensor:  # torch leaves the context untyped
        ctx.save_for_backward(x, weight)
        return _run(x, operators("winograd").transform(weight, False), bias, plus)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (g,) = ctx.saved_tensors, gradients
        of_x, of_weight, of_bias, of_plus = ctx.needs_input_grad
        if torch.is_grad_enabled():  # second derivatives use torch's operations
            for_x = conv2d_input(x.shape, weight, g, padding=1) if of_x else None
            for_weight = conv2d_weight(x, weight.shape, g, padding=1) if of_weight else None
        else:
            kernels = operators("winograd")
            for_x = _run(g, kernels.transform(weight, True), None, None) if of_x else None
            for_weight = kernels.transform_back(kernels.backward(channels_last(x), channels_last(g)), weight) if of_weight else None
        return for_x, for_weight, g.sum((0, 2, 3)) if of_bias else None, g if of_plus else None
