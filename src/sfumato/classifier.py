"""The noise-conditioned classifier: log p(y | x_t) at every level, whose gradient guides a sampler."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.data.source import DataSpec
from sfumato.denoiser import CondLike
from sfumato.guide import label_log_prob
from sfumato.runtime import moved
from sfumato.schedule import Level


class Classifier(nn.Module):
    """A network as log p(y | x_t) ∝ log p(y) + s · net(c_in x_t, log_snr), s = alpha data_std / hypot(alpha data_std, sigma).

    s is the share of x_t's amplitude that is signal: without signal the classifier returns the prior, and near there its gradient falls
    with alpha, as that of the exact classifier; otherwise x0 would move by sigma²/alpha times arbitrary network output. c_in scales x_t to
    unit variance as in `Denoiser`, and the network sees no schedule. It is a `guide.LogProb`.
    """

    def __init__(self, net: nn.Module, spec: DataSpec, prior: Float[Tensor, "k"]) -> None:
        """Wraps `net`.

        Args:
            net: maps ([b, *x], log_snr [b], None) to [b, k].
            spec: of the data.
            prior: the share of each class in the data, positive.

        Raises:
            ValueError: a prior without exactly one positive entry for each class.
        """
        super().__init__()
        if prior.shape != (len(spec.classes),) or not bool((prior > 0).all()):
            raise ValueError(f"the prior must have one positive share for each class, {len(spec.classes)}, got {prior.tolist()}.")
        self.net = net
        self.spec = spec
        self.log_prior = nn.Buffer((prior / prior.sum()).log().float())

    def log_class(self, x_t: Float[Tensor, "b *x"], level: Level) -> Float[Tensor, "b k"]:
        """log p(y | x_t) of every class, in nats.

        Raises:
            ValueError: x_t of another shape than the classifier's data.
        """
        if x_t.shape[1:] != self.spec.shape:
            raise ValueError(f"this classifier is for data of shape {self.spec.shape}, got x_t of shape {tuple(x_t.shape)}.")
        r = torch.hypot(level.alpha * self.spec.std, level.sigma)
        log_snr = moved(level.log_snr, x_t).reshape(-1).expand(len(x_t))
        weight = next(self.net.parameters(), x_t)
        says = self.net((x_t / r).to(weight.dtype), log_snr, None).to(x_t.dtype)
        share = moved(level.alpha * self.spec.std / r, x_t).reshape(-1, 1)
        return (self.log_prior.to(x_t) + share * says).log_softmax(1)

    def forward(self, x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None) -> Float[Tensor, "b"]:
        """log p(cond["labels"] | x_t) in nats, 0 for a label of -1.

        Raises:
            ValueError: x_t of another shape than the classifier's data, no labels, or labels beyond its classes.
        """
        return label_log_prob(self.log_class)(x_t, level, cond)

    def refuse_other(self, spec: DataSpec, name: str) -> None:
        """Refuses to guide a model of other data.

        Raises:
            ValueError: another shape, other classes or another codec.
        """
        for what in ("shape", "classes", "codec"):
            if (ours := getattr(self.spec, what)) != (theirs := getattr(spec, what)):
                raise ValueError(
                    f"the classifier was trained on other data than {name}: its {what} is {ours}, not {theirs}; "
                    f"use one trained with sfumato train-classifier {name}."
                )
