"""The law of how many draws fall where an order statistic of other draws of the same law says."""

from math import exp, lgamma


def beta_binomial(j: int, n: int, a: int, b: int) -> float:
    """The chance that j of n draws fall into a place whose mass is Beta(a, b)."""
    return exp(lgamma(n + 1) - lgamma(j + 1) - lgamma(n - j + 1) + _log_beta(a + j, b + n - j) - _log_beta(a, b))


def _log_beta(a: int, b: int) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
