"""Every test: float64, one thread, its own seed; every session: a cache of its own, and kernels compiled once for all."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

KERNELS = Path(__file__).parents[1] / "build" / "kernels"  # a folder for each state of the sources, torch and processor


@pytest.fixture(autouse=True)
def _exact_and_repeatable() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks of shapes at every call, for trainings and long walks: they take half the time, and short tests have them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data go to a folder that ends with the tests; the compiled kernels stay, and all processes share them."""
    cache = tmp_path_factory.mktemp("cache")
    KERNELS.mkdir(parents=True, exist_ok=True)
    (cache / "kernels").symlink_to(KERNELS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SFUMATO_CACHE", str(cache))
        yield
