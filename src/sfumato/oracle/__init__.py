"""Data whose every diffusion quantity is a closed form: each oracle is an exact `Predictor`.

What a perfect network would say, what the density of x_t is, what a sampler must converge to: tests, the ledger and the doctor hold the
rest of the library against these. All compute in float64, whatever the dtype of x_t, and answer in its dtype.
"""

from sfumato.deprecated import old_names
from sfumato.oracle.chain import Affine, LinearGaussianChain
from sfumato.oracle.empirical import EmpiricalDistribution
from sfumato.oracle.mixture import Gaussian, GaussianMixture

__all__ = ["Affine", "EmpiricalDistribution", "Gaussian", "GaussianMixture", "LinearGaussianChain"]

__getattr__ = old_names(__name__, Points="EmpiricalDistribution")
