"""Old spellings work for one version and say what the new ones are."""

import pytest
import torch

import sfumato as sf
from sfumato.deprecated import old_keywords

NAMES = {
    (sf.latent, "Visit"): "LatentDraw",
    (sf.latent, "Traces"): "HasTrace",
    (sf, "Fitted"): "FittedMultistep",
    (sf, "Tuned"): "TuningResult",
    (sf, "Flowed"): "FlowResult",
    (sf, "Moment"): "SamplingState",
    (sf, "Points"): "EmpiricalDistribution",
    (sf.oracle, "Points"): "EmpiricalDistribution",
}


@pytest.mark.parametrize(("module", "old"), NAMES, ids=lambda value: getattr(value, "__name__", value))
def test_an_old_name_is_the_new_object_with_a_warning(module, old):
    new = NAMES[module, old]
    with pytest.warns(DeprecationWarning, match=f"{old} is now called .*{new}"):
        found = getattr(module, old)
    assert found is getattr(module, new)


def test_a_name_that_never_was_is_refused():
    with pytest.raises(AttributeError, match="Pionts"):
        sf.Pionts  # noqa: B018


def test_an_old_keyword_is_passed_on_with_a_warning():
    @old_keywords(width="bin_width")
    def area(height, *, bin_width=1.0):
        return height, bin_width

    with pytest.warns(DeprecationWarning, match="width of .*area is now called bin_width"):
        assert area(2, width=3) == (2, 3)
    assert area(2, bin_width=4) == (2, 4)
    with pytest.raises(TypeError, match="both bin_width and width"):
        area(2, width=3, bin_width=4)


def test_the_width_of_a_bin_may_still_be_called_width():
    x0, level = torch.zeros(1, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    with pytest.warns(DeprecationWarning, match="width of Normal.binned_log_prob is now called bin_width"):
        old = sf.process.marginal(x0, level).binned_log_prob(x0, width=0.1)
    assert torch.equal(old, sf.process.marginal(x0, level).binned_log_prob(x0, bin_width=0.1))
    with pytest.warns(DeprecationWarning, match="is now called bin_width"):
        assert sf.latent.Gaussian(width=0.1) == sf.latent.Gaussian(bin_width=0.1)


OLD_KEYWORDS = [
    sf.likelihood.vlb, sf.likelihood.term_bits, sf.likelihood.bits_per_dim, sf.loss.vlb, sf.loss.hybrid, sf.latent.as_hierarchical_vae,
    sf.latent.DiscretisedLogistic, sf.latent.VDM, sf.latent.vdm.bound, sf.latent.vdm.decoder_bits, sf.bound_costs, sf.tune_bound,
]  # fmt: skip


@pytest.mark.parametrize("function", OLD_KEYWORDS, ids=lambda function: function.__qualname__)
def test_every_function_that_took_the_width_of_a_bin_says_its_new_name(function):
    with pytest.raises(TypeError, match="both bin_width and width"):
        function(width=0.1, bin_width=0.1)
