"""A kind of model that the library has never seen: tokens of two symbols, each place a Bernoulli variable of its own."""

import hashlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import sfumato as sf


@sf.register_data
class TokensData(sf.Options):
    kind: Literal["bernoulli-tokens"] = "bernoulli-tokens"
    count: int = 1000

    def load(self) -> "Tokens":
        return Tokens(self.count)


class Tokens(sf.Source):
    chances = np.array([0.1, 0.5, 0.8, 0.95])

    def __init__(self, count: int) -> None:
        self.values = (np.random.default_rng(0).random((count, 4)) < self.chances).astype(np.int64)

    @property
    def spec(self) -> sf.DataSpec:
        return sf.DataSpec((4,), sf.Vocabulary(("no", "yes")))

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: np.ndarray, draw: sf.Draw | None = None) -> sf.Batch:
        return sf.Batch(self.spec.codec.encode(self.values[rows]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.values.tobytes()).hexdigest()


class Logits(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(length))


@sf.register("bernoulli-tokens")
class Bernoulli(sf.Task):
    model: Literal["bernoulli-tokens"] = "bernoulli-tokens"

    def build(self, spec: sf.DataSpec, earlier: Any = ()) -> nn.Module:
        return Logits(spec.sizes[0])

    def loss(self, model: Any, batch: sf.Batch, draw: sf.Draw, state: Any) -> sf.LossTerms:
        logits = model.logits.expand(batch.x.shape)
        nats = nn.functional.binary_cross_entropy_with_logits(logits, batch.x.to(logits), reduction="none").sum(1)
        return sf.LossTerms(nats, parts={"nats": nats.detach()})

    def sampler(self, model: Any, spec: sf.DataSpec, folder: Any = None, name: str = "") -> sf.Sampler:
        return BernoulliSampler(model)


class BernoulliSampler(sf.Sampler):
    kind = "a model of Bernoulli tokens"

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, request: sf.Request) -> Tensor:
        chances = self.model.logits.detach().sigmoid()
        rows = [torch.rand(len(chances), generator=g, dtype=torch.float32) for g in sf.row_generators(request.seed, request.rows)]
        return (torch.stack(rows).to(chances) < chances).long()
