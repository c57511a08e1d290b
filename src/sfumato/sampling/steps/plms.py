"""Linear multistep methods with the coefficients of equal steps: pseudo numerical methods."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.sampling.steps.history import half_log_snr, refuse_order
from sfumato.schedule import Level

_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class PLMS:
    """DDIM's step with an eps from the last `order` levels, weighted as if all steps were equal: PLMS, and iPNDM.

    With `heun` the first step is the trapezoidal rule (two evaluations), as in PLMS: Liu et al. (2022), eqs. 9 and 12, arXiv:2202.09778,
    started as in the code of latent diffusion. Without it the first step is DDIM's: iPNDM, of Zhang & Chen (2023), arXiv:2204.13902.
    If the steps in sigma/alpha are equal it has its nominal order, otherwise at most 2: `AdamsBashforth` accounts for the actual steps.
    A step to a level without noise returns x0.
    """

    order: int = 4
    heun: bool = True

    def __post_init__(self) -> None:
        """Checks the order."""
        refuse_order(self.order, 4)

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[Tensor, ...] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[Tensor, ...]]:
        """One step; remembers the last eps."""
        p, now, then = predict(x, t), half_log_snr(t), half_log_snr(s)
        if math.isinf(now) or math.isinf(then):
            return s.alpha * p.x0 + s.sigma * p.eps, ()
        ratio = float(s.alpha) / float(t.alpha)
        length = float(s.sigma) - float(t.sigma) * ratio
        known = (p.eps, *(memory or ()))[: self.order]
        if len(known) == 1 and self.order > 1 and self.heun:
            eps = (p.eps + predict(torch.add(ratio * x, p.eps, alpha=length), s).eps) / 2
        else:
            eps = torch.stack([w * each for w, each in zip(_BASHFORTH[len(known) - 1], known, strict=True)]).sum(0)
        return torch.add(ratio * x, eps, alpha=length), known
