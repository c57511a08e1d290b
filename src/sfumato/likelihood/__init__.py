"""How probable a model finds data: the variational bound, and the exact density of the probability flow."""

from sfumato.likelihood.bound import Bound, prior_bits, term_bits, vlb

__all__ = ["Bound", "prior_bits", "term_bits", "vlb"]
