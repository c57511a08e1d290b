"""Float32, as people train, and without checks of shapes, as these are trainings; one shelf of runs a session."""

import pytest
import torch
from cases import Shelf


@pytest.fixture(autouse=True)
def _float32(unchecked):
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield Shelf(tmp_path_factory.mktemp("doctor"))
    torch.set_default_dtype(before)
