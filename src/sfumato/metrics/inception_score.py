"""The inception score: only a figure where the features have the class probabilities of ImageNet."""

import numpy as np
from numpy.typing import ArrayLike

from sfumato.metrics.checks import matrix
from sfumato.metrics.kernel import Estimate


def inception_score(probabilities: ArrayLike, *, splits: int = 10, seed: int = 0) -> Estimate:
    """exp of the mean over samples of KL(p(class | sample) ‖ p(class)), over disjoint splits; and the standard deviation over them.

    Args:
        probabilities: [n, classes], rows that sum to 1: the softmax of an ImageNet network's logits.
        splits: disjoint parts in the order of a shuffle; published figures have 10.
        seed: of the shuffle.

    Raises:
        ValueError: rows that are no probabilities, or fewer samples than splits.

    Reference:
        Salimans et al. (2016), section 4, arXiv:1606.03498
    """
    rows = matrix(probabilities, "class probabilities", least=max(splits, 1))
    if splits < 1:
        raise ValueError(f"the inception score needs at least one split, got {splits}.")
    if (rows < 0).any() or not np.allclose(rows.sum(axis=1), 1, atol=1e-4):
        raise ValueError("class probabilities must be at least 0 and sum to 1 in each row; give the softmax of the logits.")
    scores = []
    for part in np.array_split(np.random.default_rng(seed).permutation(len(rows)), splits):
        p = rows[part]
        marginal = p.mean(axis=0)
        logs = np.log(p, out=np.zeros_like(p), where=p > 0) - np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        scores.append(np.exp((p * logs).sum(axis=1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))
