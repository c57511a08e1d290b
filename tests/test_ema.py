import math

import pytest
import torch
from torch import nn

from sfumato.train.ema import Ema, exponent


def profile(width: float, steps: int) -> torch.Tensor:
    """The weight of each step in the average, read off by averaging one-hot parameters."""
    net = nn.Linear(steps, 1, bias=False)
    ema = Ema(net, width)
    for step in range(1, steps + 1):
        net.weight.data = torch.nn.functional.one_hot(torch.tensor([step - 1]), steps).to(net.weight)
        ema.update(net, step)
    return ema.tensors["weight"][0]


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_profile_is_the_power_function_of_its_width(width):
    """Weights grow as (i/n)^γ and their relative standard deviation over the run is the width. Karras et al. (2024), eq. 126."""
    steps = 2000
    weights, t = profile(width, steps), (torch.arange(steps) + 0.5) / steps
    assert math.isclose(weights.sum().item(), 1.0, rel_tol=1e-9)
    mean = (weights * t).sum()
    assert math.isclose((weights * (t - mean).square()).sum().sqrt().item(), width, rel_tol=5e-3)
    slope = (weights[-1] / weights[steps // 2 - 1]).log() / math.log(2)
    assert math.isclose(slope.item(), exponent(width), rel_tol=5e-3)


def test_the_first_update_forgets_the_initial_weights():
    net = nn.Linear(3, 3)
    ema = Ema(net, 0.1)
    nn.init.ones_(net.weight)
    ema.update(net, 1)
    assert torch.equal(ema.tensors["weight"], torch.ones(3, 3))


def test_impossible_widths_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \(0, 0.288\)"):
        exponent(0.4)
