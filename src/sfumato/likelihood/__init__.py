"""Likelihoods of data under a model: the variational bound, and the exact density of the probability flow."""

from sfumato.likelihood.bound import Bound, prior_bits, term_bits, vlb
from sfumato.likelihood.flow import (
    Dequantisation,
    Divergence,
    Exact,
    FlowBound,
    FlowDensity,
    Hutchinson,
    TruncatedNormal,
    Uniform,
    bits_per_dim,
    flow_density,
    flow_log_prob,
)

__all__ = [
    "Bound",
    "Dequantisation",
    "Divergence",
    "Exact",
    "FlowBound",
    "FlowDensity",
    "Hutchinson",
    "TruncatedNormal",
    "Uniform",
    "bits_per_dim",
    "flow_density",
    "flow_log_prob",
    "prior_bits",
    "term_bits",
    "vlb",
]
