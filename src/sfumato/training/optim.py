"""Optimisers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

Muon moves a matrix along the orthogonal factor of its momentum, at AdamW's scale (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982).
A convolution counts as the matrix [out, in · kernel].
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.options import Training
from sfumato.runtime import moved, multiplies_bfloat16


@runtime_checkable
class HasHidden(Protocol):
    """A network that tells which parameters are its hidden matrices, between the first and the last layer."""

    def hidden(self) -> Iterator[nn.Parameter]:
        """The hidden matrices and convolutions."""
        ...


def rate_at(options: Training, step: int) -> float:
    """The learning rate at step 1 … steps, relative to the peak: linear warm-up, then decay."""
    warm = min(1.0, step / options.warmup) if options.warmup else 1.0
    done = min(1.0, max(0.0, (step - options.warmup) / max(1, options.steps - options.warmup)))
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}[options.decay]
    return warm * fall


class Optimizer:
    """One or two torch optimisers for a network's float32 parameters, with a common learning rate schedule and a global gradient clip."""

    def __init__(self, net: nn.Module, options: Training) -> None:
        """Assigns each parameter to an optimiser.

        Raises:
            ValueError: Muon for a network without `hidden`.
        """
        self.options = options
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        hidden: list[nn.Parameter] = []
        if options.optimizer == "muon":
            if not isinstance(net, HasHidden):
                raise ValueError(f"{type(net).__name__} has no hidden() to list its matrices for Muon; set training.optimizer=adamw.")
            hidden = list(net.hidden())
        apart = {id(p) for p in hidden}
        rest = [p for p in self.parameters if id(p) not in apart]
        decayed, plain = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr=options.rate,
                betas=options.betas,
                weight_decay=options.weight_decay,
                fused=True,
            )
        ]
        self.peaks = [options.rate]
        self.matrices = [(p, nn.Parameter(_as_matrix(p.detach()))) for p in hidden]
        if hidden:
            views = [view for _, view in self.matrices]
            self.parts.append(Muon(views, rate=options.muon_rate, weight_decay=options.weight_decay))
            self.peaks.append(options.muon_rate)

    def rate(self, step: int) -> float:
        """The learning rate at step 1 … steps, relative to the peak."""
        return rate_at(self.options, step)

    def clip(self) -> Tensor:
        """Clips the gradients; returns their norm before clipping, on their device. Waits for it only if some gradients are on the CPU."""
        near = [p for p in self.parameters if p.device.type == "cpu"]
        if not near or len(near) == len(self.parameters):
            return nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        parts = [near, [p for p in self.parameters if p.device.type != "cpu"]]
        norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts]
        norm = torch.hypot(moved(norms[0].float(), norms[1]), norms[1])
        for part, total in zip(parts, (norm.cpu(), norm), strict=True):
            nn.utils.clip_grads_with_norm_(part, self.options.clip, total)
        return norm

    def step(self, step: int, share: float = 1.0) -> None:
        """Updates the weights with a share of the learning rate of this step (1, 2, …)."""
        rate = self.rate(step)
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * rate * share
        for parameter, view in self.matrices:
            view.grad = None if parameter.grad is None else _as_matrix(parameter.grad)
        for part in self.parts:
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The states of the optimisers as named tensors."""
        named = {}
        for i, part in enumerate(self.parts):
            for index, state in part.state_dict()["state"].items():
                named |= {f"{i}.{index}.{key}": value for key, value in state.items()}
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores saved states.

        Raises:
            ValueError: they are for other parameters.
        """
        for i, part in enumerate(self.parts):
            state: dict[int, dict[str, Any]] = {}
            shapes = [parameter.shape for group in part.param_groups for parameter in group["params"]]
            for name, value in tensors.items():
                which, index, key = name.split(".", 2)
                if int(which) == i:
                    if value.ndim and shapes[int(index) : int(index) + 1] != [value.shape]:
                        raise ValueError(f"{name} is {list(value.shape)}")
                    state.setdefault(int(index), {})[key] = value
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; at 0.2 sqrt(max(out, in)) of the rate, the root mean square of AdamW's steps.

    torch.optim.Muon iterates in bfloat16 everywhere, which is 400 times slower on a processor without bfloat16 products.

    Reference: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon; Liu et al. (2025), eq. 4, arXiv:2502.16982.
    """

    def __init__(self, matrices: list[nn.Parameter], *, rate: float, weight_decay: float, momentum: float = 0.95) -> None:
        """For matrices [out, in]; the rate is on AdamW's scale."""
        super().__init__(matrices, {"lr": rate, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                direction = orthogonal_factor(matrix.grad.lerp(average, group["momentum"]).to(self.dtype))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-0.2 * math.sqrt(max(matrix.shape)) * group["lr"])


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Approximates U V' of matrix = U S V' by five Newton-Schulz steps: singular values end in about [0.7, 1.2]. Jordan et al. (2024).

    Each step multiplies from the left by a polynomial in x x'. For a long x these are collected in a small matrix and x is multiplied once,
    which takes a third of the time for a 3×3 convolution; in bfloat16 the rounding would matter.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    gram = x @ x.T
    if x.dtype == torch.bfloat16 or x.shape[1] < 2 * x.shape[0]:
        for step in range(5):
            gram = gram if step == 0 else x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:
        gathered = torch.eye(len(x), dtype=x.dtype, device=x.device)
        for _ in range(5):
            factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal().add_(a)
            gathered, gram = factor @ gathered, factor @ gram @ factor
        x = gathered @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _as_matrix(weight: Tensor) -> Tensor:
    """A view of the weight as [out, rest], whatever its memory format."""
    if weight.ndim == 2:
        return weight
    last = weight.permute(0, *range(2, weight.ndim), 1)
    return last.flatten(1) if last.is_contiguous() else weight.view(len(weight), -1)


def set_gradients(fp32_params: Iterable[nn.Parameter], compute_params: Iterable[nn.Parameter]) -> None:
    """Moves the gradients of the low-precision parameters to the float32 ones."""
    for fp32, compute in zip(fp32_params, compute_params, strict=True):
        fp32.grad = None if compute.grad is None else compute.grad.to(fp32.dtype)
        compute.grad = None
