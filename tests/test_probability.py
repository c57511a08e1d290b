"""What the ledger does not ask of tables and Gaussians: order of axes, refusals, infinities. The rest is in its chapter `foundations`."""

import math

import pytest
import torch

from sfumato import probability as pr


def test_kept_axes_stay_in_their_order():
    p = torch.rand(2, 3, 4)
    torch.testing.assert_close(pr.marginal(p, [2, 0]), p.sum(1))
    torch.testing.assert_close(pr.marginal(p, [0, 1, 2]), p)


def test_a_condition_that_never_occurs_is_refused():
    with pytest.raises(ValueError, match="probability zero"):
        pr.conditional(torch.tensor([[0.5, 0.0], [0.5, 0.0]]), [1])


def test_kl_is_infinite_where_q_lacks_what_p_has():
    assert math.isinf(pr.kl(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])))
    assert pr.kl(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("order", [[0, 2], [2, 0]])
def test_a_marginal_gaussian_keeps_the_order_asked_for(order):
    root = torch.randn(3, 3)
    p = pr.Joint(torch.randn(3), root @ root.T)
    x = torch.randn(5, 3)
    theirs = torch.distributions.MultivariateNormal(p.mean[order], p.covariance[order][:, order])
    torch.testing.assert_close(p.marginal(order).log_prob(x[:, order]), theirs.log_prob(x[:, order]))


@pytest.mark.parametrize("order", [[0, 2], [2, 0]])
def test_what_is_known_may_come_in_any_order(order):
    root, value = torch.randn(3, 3), torch.tensor([0.3, -1.0, 0.8])
    p = pr.Joint(torch.randn(3), root @ root.T + torch.eye(3))
    other = p.given([0, 2], value[[0, 2]])
    torch.testing.assert_close(p.given(order, value[order]).mean, other.mean)
    torch.testing.assert_close(p.given(order, value[order]).covariance, other.covariance)


def test_the_importance_bound_of_one_draw_is_the_elbo():
    log_joint, log_q = torch.randn(1, 7), torch.randn(1, 7)
    torch.testing.assert_close(pr.importance_bound(log_joint, log_q), pr.elbo(log_joint, log_q))
