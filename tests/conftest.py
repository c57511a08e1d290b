"""Every test: float64, one thread, its own seed."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _exact_and_repeatable() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data go to a folder that ends with the tests."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
