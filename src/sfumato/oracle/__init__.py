"""Distributions whose diffusion quantities are all known in closed form: each oracle is an exact `Predictor`.

They give the perfect network's output, the density of x_t, and the law that a sampler must reach; tests, the ledger and the doctor compare
the rest of the library with them. All compute in float64, whatever the dtype of x_t, and return its dtype.
"""

from sfumato.deprecated import old_names
from sfumato.oracle.chain import Affine, LinearGaussianChain
from sfumato.oracle.empirical import EmpiricalDistribution
from sfumato.oracle.mixture import Gaussian, GaussianMixture

__all__ = ["Affine", "EmpiricalDistribution", "Gaussian", "GaussianMixture", "LinearGaussianChain"]

__getattr__ = old_names(__name__, Points="EmpiricalDistribution")
