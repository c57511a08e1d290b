"""From a network to a `Predictor`: the call signature of losses, steps, likelihoods and guidance.

`predict(x_t, level, cond) -> Prediction`. `Denoiser` makes one from a network, `oracle` has exact ones, and `guide` wraps one in another.
Conditions are a mapping from name to `Condition`, or to a plain tensor with one row an example, or None (`sfumato.condition`). Label
dropping trains the case of conditions that are not given, and classifier-free guidance uses it. Networks get `Condition`s.
"""

from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import Cond as Cond  # for importers that expect it here
from sfumato.condition import CondLike, as_cond, refuse_cond
from sfumato.condition import drop as drop
from sfumato.prediction import Prediction, Target, edm_target, eps_target
from sfumato.runtime import moved
from sfumato.schedule import Level


@runtime_checkable
class Predictor(Protocol):
    """Anything that separates x_t into x0 and eps."""

    def __call__(self, x_t: Tensor, level: Level, cond: CondLike | None = None) -> Prediction:
        """Splits x_t [b, *x] = alpha x0 + sigma eps; the level holds one value a row or one for all.

        Guidance, and everything else that drops or selects rows, passes `Condition`s; `as_cond` converts plain tensors.
        """
        ...


class Denoiser(nn.Module):
    """A network as a predictor of `target`.

    The network is called as net(c_in x_t, log_snr, cond): c_in scales x_t to unit variance for data of standard deviation `data_std`;
    log_snr has one entry a row, in nats. It sees no schedule, so a model trained with one schedule can be sampled with any other.
    """

    def __init__(self, net: nn.Module, target: Target = eps_target, *, data_std: float = 1.0, variance: str = "fixed") -> None:
        """Wraps `net`.

        Args:
            net: maps [b, c, *x] to [b, c, *x], or to [b, 2c, *x] with variance="learned".
            target: what the network's output means; `edm_target` is taken at this `data_std`.
            data_std: standard deviation of the data, over all entries.
            variance: "fixed", or "learned": the second half of the channels is the position of the variance between log β̃ (-1) and
            log β (+1), as in Nichol & Dhariwal (2021), eq. 15, arXiv:2102.09672.

        Raises:
            ValueError: data_std that is not positive, or an unknown variance.
        """
        super().__init__()
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, got {data_std}; measure it over the whole data set.")
        if variance not in ("fixed", "learned"):
            raise ValueError(f'variance must be "fixed" or "learned", got "{variance}".')
        self.net = net
        self.target = partial(edm_target, data_std=data_std) if target is edm_target else target
        self.data_std = data_std
        self.learns_variance = variance == "learned"

    def forward(self, x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        """The prediction at x_t, solved in the precision of x_t whatever the network computes in.

        Raises:
            ValueError: a level, a condition, or an output of the network that does not fit x_t; an x_t that is not a tensor of floats.
        """
        if not torch.compiler.is_compiling():
            refuse_array(x_t)
            refuse_cond(cond, len(x_t))
        if level.alpha.ndim not in (0, x_t.ndim):
            raise ValueError(
                f"a level of shape {tuple(level.alpha.shape)} does not fit x_t of shape {tuple(x_t.shape)}; "
                "use one level for all, or schedule.level(t, like=x_t) for one a row."
            )
        unit = x_t / torch.hypot(level.alpha * self.data_std, level.sigma)
        log_snr = moved(level.log_snr, x_t).reshape(-1).expand(len(x_t))
        weight = next(self.net.parameters(), x_t)
        y = self.net(unit.to(weight.dtype), log_snr, as_cond(cond)).to(x_t.dtype)
        fraction = None
        if self.learns_variance and y.ndim > 1 and y.shape[1] == 2 * x_t.shape[1]:
            y, fraction = y.chunk(2, dim=1)
            fraction = (fraction + 1) / 2
        if y.shape != x_t.shape or (self.learns_variance and fraction is None):
            wanted = f"[b, 2 · {x_t.shape[1]}, …]" if self.learns_variance else "its input's shape"
            raise ValueError(f"the network returned shape {tuple(y.shape)} for x_t of shape {tuple(x_t.shape)}, not {wanted}.")
        return Prediction.solve(y, x_t, level, self.target, fraction)


def refuse_array(x: Tensor) -> None:
    """Refuses data that are not a floating-point tensor with one row an example.

    Raises:
        ValueError: another type, another dtype, or no axis of examples.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a torch tensor, got {type(x).__name__}; use torch.as_tensor(x).")
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"x must hold floating-point numbers, one row an example, got {x.dtype} of shape {tuple(x.shape)}.")
