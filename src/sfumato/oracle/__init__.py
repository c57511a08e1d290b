"""Data whose every diffusion quantity is a closed form: each oracle is an exact `Predictor`.

What a perfect network would say, what the density of x_t is, what a sampler must converge to: tests, the ledger and the doctor hold the
rest of the library against these. All compute in float64, whatever the dtype of x_t, and answer in its dtype.
"""

from sfumato.oracle.chain import Affine, LinearGaussianChain
from sfumato.oracle.mixture import Gaussian, GaussianMixture
from sfumato.oracle.points import Points

__all__ = ["Affine", "Gaussian", "GaussianMixture", "LinearGaussianChain", "Points"]
