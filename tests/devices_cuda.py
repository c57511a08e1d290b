"""`make devices`: forward passes, losses, samplers and guidance on torch.device("cuda") of a CUDA build, without a GPU.

Tensors on the device are fake (`FakeTensorMode`: shapes, dtypes and devices by torch's own rules), those on the CPU are real. Prints what
stays on the CPU and meets the device, what is float64 there, and how often a value is waited for. Backward passes need a GPU in a CUDA
build; `test_devices.py`, which runs here too, has them on a device of its own.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import test_devices as cases
import torch
from far import aten, place
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

import sfumato as sf
from sfumato.noise import row_generators
from sfumato.runtime import moved
from sfumato.tasks.options import SAMPLERS

CUDA = torch.device("cuda", 0)


class Cuda(FakeTensorMode):
    """Fake tensors on the GPU beside real ones on the CPU; what comes back from the GPU is 0.5."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        asked = kwargs.get("device")
        goes_far = asked is not None and torch.device(asked).type == "cuda"
        if not goes_far and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self.waits.append(place())
            return 1.0
        if func is aten._to_copy.default:
            if asked is not None and not goes_far:
                self.waits.append(place())
                return torch.full(tensors[0].shape, 0.5, dtype=kwargs.get("dtype") or tensors[0].dtype)
            if goes_far and not isinstance(tensors[0], FakeTensor) and not kwargs.get("non_blocking"):
                self.waits.append(place())
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda" and tensor.dtype == torch.float64:
                raise AssertionError(f"{func}: float64 on the device at {place()}")
        return out


def checks() -> dict[str, tuple[int, Callable[[], None]]]:
    """By name: how many waits there may be, and what to run."""
    there = lambda tensor: moved(tensor, CUDA)  # noqa: E731

    def network(name: str) -> None:
        net = cases.NETS[name]().to(CUDA)
        x, cond = there(torch.randn(3, *net.shape)), {key: there(value) for key, value in cases.cond_of(net).items()} or None
        denoiser, level = sf.Denoiser(net, sf.v_target), sf.Cosine().level(torch.rand(3), like=x)
        denoiser(x, sf.Cosine().level(0.4), cond)
        sf.loss.simple(denoiser, x, there(torch.randn(3, *net.shape)), level, cond)

    def walk(step: Any, variance: str = "fixed", guide: Any = None) -> None:
        model = cases.denoiser(variance).to(CUDA)
        cond = {key: there(value) for key, value in cases.POINTS.items()}
        predict = model if guide is None else guide(model, None)
        x, levels = there(torch.randn(3, 2)), sf.grid(sf.Discrete.linear(100), 6)
        sf.sample(predict, x, levels, step, cond, generator=row_generators(0, range(3)))

    found = {f"network {name}": (0, lambda name=name: network(name)) for name in cases.NETS}
    for name, step in SAMPLERS.items():
        variance, waits = "learned" if "learned" in name else "fixed", 10_000 if name == "adaptive-sde" else 1
        found[f"sampler {name}"] = (waits, lambda step=step, variance=variance: walk(step, variance))
    for name, guide in cases.GUIDES.items():
        if name != "classifier":  # its gradient is a backward pass
            found[f"guidance {name}"] = (1, lambda guide=guide: walk(sf.steps.DDIM(), guide=guide))
    return found


def main() -> int:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    warnings.simplefilter("ignore")
    faults = 0
    for name, (allowed, check) in checks().items():
        with torch.no_grad(), Cuda() as mode:
            fault = ""
            try:
                check()
            except (AssertionError, RuntimeError, ValueError) as error:
                fault = str(error).splitlines()[0]
            waits = [where for where in mode.waits if not where.startswith("nowhere")]
        if not fault and len(waits) > allowed:
            fault = f"waits {len(waits)} times: {waits[:3]}"
        faults += bool(fault)
        print(f"{name:28} {fault or 'good'}", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
