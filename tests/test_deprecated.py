"""Old spellings work for one version and say what the new ones are."""

import pytest

import sfumato as sf
from sfumato.deprecated import old_keywords

NAMES = {
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
