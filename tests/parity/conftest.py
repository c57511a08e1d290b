"""Networks of other libraries are float32."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _in_float32(_exact_and_repeatable: None) -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)
