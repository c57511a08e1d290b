"""A device without hardware: its tensors compute on the CPU, and what would be a fault or a wait on a GPU is found.

Found are tensors of the CPU that meet those of the device, float64 on the device, and every wait: a value that is read, a copy back, a
copy there that is not asynchronous. The numbers are real ones, so results can be compared with those of the CPU.
"""

import traceback
from pathlib import Path
from typing import Any

import torch
import torch.utils.backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sfumato import runtime

aten = torch.ops.aten
SOURCE = str(Path(runtime.__file__).parent)
INTO = (aten.copy_.default, aten._foreach_copy_.default)
COPIES = (aten._to_copy.default, *INTO)
TAKES_INDICES = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
LOOKS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default)
active: list["Far"] = []


class Module:
    """What torch asks of a device's module: there is no such device that it should take by itself."""

    is_initialized = staticmethod(lambda: True)
    is_available = staticmethod(lambda: False)
    current_device = device_count = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=0: torch.zeros(0, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda state, device=0: None)


# On import, as autograd counts the devices at the first backward pass of a process.
torch.utils.backend_registration._setup_privateuseone_for_python_backend("far", backend_module=Module())
runtime.COPIES_AT_ONCE.add("far")
DEVICE = torch.device("far", 0)


class FarTensor(torch.Tensor):
    """A tensor on the device, with its values beside it."""

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "FarTensor":
        return torch.Tensor._make_wrapper_subclass(cls, near.size(), strides=near.stride(), dtype=near.dtype, device=DEVICE)

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:
        return f"far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Far(TorchDispatchMode):
    """Where the device is in use; `waits` says where in sfumato each wait is."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __enter__(self) -> "Far":
        active.append(self)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # weights of another class take the place of the old ones
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        active.remove(self)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes an operation on the CPU, after a look at where its tensors lie."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
    asked = kwargs.get("device")
    goes_far = bool(far) if asked is None else torch.device(asked).type == "far"
    if func in COPIES:
        into_far = isinstance(tensors[0], FarTensor) if func in INTO else goes_far
        from_far = isinstance(tensors[-1], FarTensor)
        if into_far != from_far and (from_far or not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))):
            note(func)
    elif far:
        masks = [i for i in args[1] if isinstance(i, FarTensor) and i.dtype == torch.bool] if func in TAKES_INDICES else []
        if func in LOOKS or masks:
            note(func)
        meeting = [tensor for tensor in tensors if not isinstance(tensor, FarTensor) and tensor.ndim]
        if meeting and func not in TAKES_INDICES:
            raise AssertionError(f"{func}: a tensor on the CPU of shape {tuple(meeting[0].shape)} meets the device at {place()}")
    near_args, near_kwargs = tree_map_only(FarTensor, lambda tensor: tensor.near, (args, kwargs))
    if asked is not None:
        near_kwargs = {**near_kwargs, "device": torch.device("cpu")}
    out = func(*near_args, **near_kwargs)
    if not goes_far:
        return out

    def there(tensor: torch.Tensor) -> torch.Tensor:
        for given in far:
            if given.near is tensor:
                return given
        if tensor.dtype == torch.float64:
            raise AssertionError(f"{func}: float64 on the device at {place()}")
        return FarTensor(tensor)

    return tree_map_only(torch.Tensor, there, out)


def note(func: Any) -> None:
    """Writes down a wait."""
    for mode in active:
        mode.waits.append(f"{func} at {place()}")


def place() -> str:
    """The line of sfumato that is being run; that of the backward pass has none."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(SOURCE) and not frame.filename.endswith("runtime.py"):
            return f"{Path(frame.filename).relative_to(SOURCE)}:{frame.lineno}"
    return "nowhere in sfumato"
