"""Normalisation, a condition's scale and shift, and the activation in one pass over a feature map, in float32 on CPUs.

torch makes three to five passes, each of which reads a large map from memory; together they took a third of a U-Net's
forward pass. Wu & He (2018), arXiv:1803.08494, equations 1 to 6, with the statistics of each channel taken about one of its own entries.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.kernels.build import LANES, HasKernel, channels_first, channels_last, operators


class GroupNorm(HasKernel, nn.GroupNorm):
    """A group normalisation, with the operations around it in a residual block."""

    def forward(
        self,
        input: Float[Tensor, "b c *size"],
        *,
        offset: Float[Tensor, "b c"] | None = None,
        scale: Float[Tensor, "b c"] | None = None,
        shift: Float[Tensor, "b c"] | None = None,
        activates: bool = False,
    ) -> Float[Tensor, "b c *size"]:
        """silu((1 + scale) norm(input + offset) + shift); scale and shift come together; without `activates` there is no silu."""
        given = (self.weight, self.bias, scale, shift, offset)
        if self.by_kernel and fits(input):
            return _in_one_pass(input, self.num_groups, self.eps, activates, given)
        return _in_turn(input, self.num_groups, self.eps, activates, given)


class ModulatedSiLU(HasKernel, nn.Module):
    """silu((1 + scale) x + shift)."""

    def forward(self, x: Float[Tensor, "b c h w"], scale: Float[Tensor, "b c"], shift: Float[Tensor, "b c"]) -> Float[Tensor, "b c h w"]:
        """Modulates and activates."""
        given = (None, None, scale, shift, None)
        return _in_one_pass(x, 0, 0.0, True, given) if self.by_kernel and fits(x) else _in_turn(x, 0, 0.0, True, given)


Given = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # weight, bias, scale, shift, offset


def fits(x: Float[Tensor, "b c *size"]) -> bool:
    """Whether the kernel can compute this."""
    return x.ndim == 4 and x.shape[1] % LANES == 0 and x.device.type == "cpu" and x.dtype == torch.float32


def _in_turn(x: Tensor, groups: int, eps: float, activates: bool, given: Given) -> Tensor:
    """With torch, one operation after another; groups=0 does not normalise."""
    weight, bias, scale, shift, offset = given
    over = (..., *(None,) * (x.ndim - 2))
    if offset is not None:
        x = x + offset[over]
    if groups:
        x = nn.functional.group_norm(x, groups, weight, bias, eps)
    if scale is not None and shift is not None:
        x = torch.addcmul(shift[over], x, 1 + scale[over])
    return nn.functional.silu(x) if activates else x


def _in_one_pass(x: Tensor, groups: int, eps: float, activates: bool, given: Given) -> Tensor:
    """With our kernel; the result is channels-last."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, *given)):
        y = _Normalisation.apply(x, groups, eps, activates, *given)
        assert isinstance(y, Tensor)
        return y
    return _run(x, groups, eps, activates, given)[0]


def _run(x: Tensor, groups: int, eps: float, activates: bool, given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and inverse standard deviation of each group."""
    flat = channels_last(x)
    y, mean, rstd = operators("norm").forward(flat.flatten(1, 2), groups, eps, activates, *_contiguous(given))
    return channels_first(y.view(flat.shape)), mean, rstd


def _contiguous(given: Given) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in given]


class _Normalisation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, eps: float, activates: bool, *given: Tensor | None
    ) -> Tensor:  # torch leaves the context untyped
        weight, bias, scale, shift, offset = given
        y, mean, rstd = _run(x, groups, eps, activates, (weight, bias, scale, shift, offset))
        ctx.save_for_backward(x, mean, rstd, *given)
        ctx.options = groups, eps, activates
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, mean, rstd, *given), (groups, eps, activates) = gradients, ctx.saved_tensors, ctx.options
        weight, bias, scale, shift, offset = given
        if torch.is_grad_enabled():  # second derivatives use torch's operations
            wanted = [i for i, is_so in enumerate(ctx.needs_input_grad) if is_so]
            inputs = [x, None, None, None, *given]
            y = _in_turn(x, groups, eps, activates, (weight, bias, scale, shift, offset))
            found = dict(zip(wanted, torch.autograd.grad(y, [inputs[i] for i in wanted], g, create_graph=True), strict=True))
            return tuple(found.get(i) for i in range(len(inputs)))
        flat, behind = channels_last(x).flatten(1, 2), channels_last(g).flatten(1, 2)
        of_x, ones, normals = operators("norm").backward(
            flat, behind, mean, rstd, groups, activates, *_contiguous((weight, bias, scale, shift, offset))
        )
        of_map = channels_first(of_x.view(len(x), *x.shape[2:], x.shape[1]))
        # Before the modulation the map is weight · normal + bias (the input itself without normalisation).
        factor = 1 if scale is None else 1 + scale
        of_weight = None if weight is None else (factor * normals).sum(0)
        of_bias = None if bias is None else (factor * ones).sum(0)
        of_scale = None if scale is None else (normals if weight is None else weight * normals + bias * ones)
        of_offset = None if offset is None else of_x.sum(1)
        return of_map, None, None, None, of_weight, of_bias, of_scale, None if shift is None else ones, of_offset
