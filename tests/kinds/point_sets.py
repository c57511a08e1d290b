"""A kind of model that the library has never seen: sets of points whose size varies, denoised together whatever their order."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import sfumato as sf

MOST, LEVELS = 6, sf.grid(sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0), 20)  # points in a set; of a walk


@sf.register_data
class SetsData(sf.Options):
    kind: Literal["point-sets"] = "point-sets"

    def load(self) -> "Sets":
        return Sets(500)


class Sets(sf.Source):
    spec = sf.DataSpec((None, 2), sf.Scaling(shift=0.0, scale=1.0, dtype="float32"))

    def __init__(self, count: int, garbage: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        sizes, centres = rng.integers(1, MOST + 1, count), rng.normal(size=(count, 1, 2))
        self.mask = np.arange(MOST) < sizes[:, None]
        self.points = np.where(self.mask[..., None], centres + 0.1 * rng.normal(size=(count, MOST, 2)), garbage).astype(np.float32)

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, rows: np.ndarray, draw: sf.Draw | None = None) -> sf.Batch:
        return sf.Batch(torch.from_numpy(self.points[rows]), mask=torch.from_numpy(self.mask[rows]))

    def fingerprint(self) -> str:
        return self.points[self.mask].tobytes().hex()[:64]


class SetNet(nn.ModuleDict):
    def forward(self, x: Tensor, log_snr: Tensor, cond: Any, mask: Tensor) -> Tensor:
        h = self["each"](torch.cat([x, log_snr.reshape(-1, 1, 1).expand(*x.shape[:2], 1) / 10], 2)).relu()
        mean = torch.where(mask[..., None], h, 0).sum(1, keepdim=True) / mask.sum(1).reshape(-1, 1, 1)
        return self["out"]((h + self["together"](mean)).relu())


@sf.register("point-sets")
class PointSets(sf.Task):
    model: Literal["point-sets"] = "point-sets"

    def build(self, spec: sf.DataSpec, earlier: Any = ()) -> nn.Module:
        return SetNet({"each": nn.Linear(3, 64), "together": nn.Linear(64, 64), "out": nn.Linear(64, 2)})

    def loss(self, model: Any, batch: sf.Batch, draw: sf.Draw, state: Any) -> sf.LossTerms:
        t = draw.whole(lambda n, generator: torch.rand(n, generator=generator, dtype=torch.float64))
        level, x0 = sf.Cosine().level(t, like=batch.x), torch.where(batch.mask[..., None], batch.x, 0)
        x_t = level.alpha * x0 + level.sigma * draw.normal(x0)
        error = (model(x_t, level.log_snr.flatten(), None, batch.mask) - x0).square().mean(2)
        return sf.LossTerms(torch.where(batch.mask, error, 0).sum(1) / batch.mask.sum(1), log_snr=sf.Cosine().log_snr(t))

    def sampler(self, model: Any, spec: sf.DataSpec, folder: Any = None, name: str = "") -> sf.Sampler:
        return SetSampler(model)


@dataclass
class SetSampler(sf.Sampler):
    model: Any
    kind = "a model of point sets"

    def __call__(self, request: sf.Request) -> Tensor:
        generators = sf.row_generators(request.seed, request.rows)
        mask = torch.stack([torch.arange(MOST) < torch.randint(1, MOST + 1, (), generator=g) for g in generators])

        def predict(x: Tensor, level: sf.Level, cond: Any = None) -> sf.Prediction:
            return sf.Prediction.solve(self.model(x, level.log_snr.to(x).expand(len(x)), cond, mask), x, level, sf.x0_target)

        noise = sf.normal_like(torch.empty(len(mask), MOST, 2, dtype=torch.float32), generators)
        return torch.where(mask[..., None], sf.sample(predict, noise, LEVELS, sf.steps.DDIM()), torch.nan)
