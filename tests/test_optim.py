"""Muon against torch's, and against the singular values that it promises."""

import pytest
import torch
from torch import nn

from sfumato.training.optim import Muon, orthogonal_factor


@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5)])
def test_the_factor_keeps_the_axes_and_levels_the_values(shape):
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ orthogonal_factor(matrix) @ right.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-9
    assert ((inner.diag() > 0.6) & (inner.diag() < 1.3)).all()


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_muon_moves_as_torch_does(shape):
    """torch.optim.Muon iterates in bfloat16, hence the tolerance: a fiftieth of the distance moved."""
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    steppers = [
        Muon([ours], rate=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for gradient in gradients:
        for parameter, stepper in zip((ours, theirs), steppers, strict=True):
            parameter.grad = gradient.clone()
            stepper.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()
