import pytest
import torch

import sfumato as sf
from sfumato.noise import seeded

draw = lambda g: torch.randn(3, generator=g)  # noqa: E731


def test_the_order_of_a_key_matters():
    assert not torch.equal(draw(seeded(1, 2)), draw(seeded(2, 1)))
    assert not torch.equal(draw(seeded(0, 3)), draw(seeded(1, 2)))
    assert torch.equal(draw(seeded(1, 2)), draw(seeded(1, 2)))


def test_a_row_is_keyed_by_seed_then_index():
    """Rows of one seed and rows of another never meet: (0, 1) is not (1, 0)."""
    assert not torch.equal(*(draw(sf.row_generators(seed, [index])[0]) for seed, index in ((0, 1), (1, 0))))
    assert torch.equal(draw(sf.row_generators(4, [9])[0]), draw(seeded(4, 9)))


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_number_of_generators_is_refused(count):
    with pytest.raises(ValueError, match=f"got {count} generators for 3 rows"):
        sf.normal_like(torch.zeros(3, 2), sf.row_generators(0, range(count)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("generator", [None, torch.Generator(), [torch.Generator(), torch.Generator()]], ids=["none", "one", "rows"])
def test_noise_is_like_its_tensor(generator, dtype):
    noise = sf.normal_like(torch.zeros(2, 5, dtype=dtype), generator)
    assert (noise.shape, noise.dtype) == ((2, 5), dtype)
    assert not torch.equal(noise.double(), noise.float().double()) or dtype is torch.float32


def test_rows_with_different_indices_differ():
    assert not torch.equal(*sf.normal_like(torch.empty(2, 8), sf.row_generators(0, [50699, 55170])))


@pytest.mark.parametrize("keys", [((5,), (5, 0)), ((2**32,), (0, 1))], ids=["padding", "words"])
def test_different_keys_differ(keys):
    assert not torch.equal(*(draw(seeded(*key)) for key in keys))
