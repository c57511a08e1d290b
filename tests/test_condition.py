"""Conditions: what plain tensors mean, what dropping leaves, rows picked and joined; specs read texts, check values, and survive JSON."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import _pytree

import sfumato as sf
from sfumato.condition import Classes, Condition, ConditionSpec, Map, Numbers, Sequence, Tokens, as_cond, cat, drop, spread, take

NAN = float("nan")


def everything() -> dict[str, Condition]:
    """Three rows of every kind of value."""
    return {
        "class": Condition(torch.tensor([4, 5, 6]), torch.tensor([True, True, False])),
        "numbers": Condition(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, NAN]]), torch.tensor([True, True, True])),
        "words": Condition(torch.arange(6).reshape(3, 2), torch.ones(3, dtype=torch.bool), torch.tensor([[1, 0], [1, 1], [0, 0]]).bool()),
    }


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (torch.tensor([0, -1, 2]), [True, False, True]),
        (np.array([0, -1, 2], dtype=np.int16), [True, False, True]),
        (torch.tensor([-1.0, -1.0, 0.0]), [True, True, True]),
        (torch.full((3, 2), -1), [True, True, True]),
        (np.full((3, 1, 2, 2), -1.0), [True, True, True]),
    ],
    ids=["classes", "array", "floats", "tokens", "maps"],
)
def test_only_a_class_of_minus_one_is_not_given(value, given):
    one = as_cond({"it": value})["it"]
    assert one.given.tolist() == given
    assert one.value.tolist() == value.tolist()
    assert as_cond({"it": one})["it"] is one


def test_nothing_stays_nothing():
    assert as_cond(None) is drop(None) is take(None, slice(1)) is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.tensor(3), "one row an example"),
        (torch.tensor([0, -2]), "counted from 0"),
        (Condition(torch.zeros(3), torch.ones(2, dtype=torch.bool)), "has 3 rows, but its `given` has shape"),
    ],
    ids=["a number", "below -1", "rows"],
)
def test_what_is_no_condition_is_refused(value, sentence):
    with pytest.raises(ValueError, match=sentence):
        as_cond({"it": value})


@pytest.mark.parametrize("names", [None, ["numbers"]])
@pytest.mark.parametrize("rows", [torch.tensor([False, True, False]), True, False], ids=["some", "all", "none"])
def test_dropping_clears_given_and_touches_no_value(rows, names):
    before = everything()
    after = drop(before, rows, names)
    for name, one in before.items():
        kept = torch.ones(3, dtype=torch.bool) if names and name not in names else ~torch.as_tensor(rows).expand(3)
        assert torch.equal(after[name].given, one.given & kept)
        assert after[name].value is one.value
        assert after[name].mask is one.mask


def test_dropping_a_name_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match='no condition "klass"; it has class, numbers, words'):
        drop(everything(), names=["klass"])


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [(1, [1]), (-1, [2]), (slice(1, None), [1, 2]), (torch.tensor([True, False, True]), [0, 2]), (torch.tensor([2, 2, 0]), [2, 2, 0])],
    ids=["row", "last", "slice", "mask", "numbers"],
)
def test_rows_are_picked_from_all_three_tensors(rows, wanted):
    for one in everything().values():
        picked = one[rows]
        assert len(picked) == len(wanted)
        torch.testing.assert_close(picked.value, one.value[wanted], equal_nan=True)
        assert torch.equal(picked.given, one.given[wanted])
        assert picked.mask is None if one.mask is None else torch.equal(picked.mask, one.mask[wanted])


def test_a_row_beyond_the_last_is_an_index_error():
    with pytest.raises(IndexError):
        everything()["class"][3]
    assert len(list(everything()["class"])) == 3


def test_rows_are_joined_and_spread():
    cond = everything()
    again = cat(take(cond, slice(1)), take(cond, slice(1, None)))
    for name, one in cond.items():
        torch.testing.assert_close(again[name].value, one.value, equal_nan=True)
        assert torch.equal(again[name].given, one.given)
    assert torch.equal(again["words"].mask, cond["words"].mask)
    wide = spread(take(cond, slice(1)), 4)
    assert wide["class"].value.tolist() == [4] * 4
    assert wide["words"].mask.tolist() == [[True, False]] * 4


def test_a_mask_that_one_part_lacks_is_full():
    bare = Condition(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, dtype=torch.bool))
    assert cat({"words": bare}, take({"words": everything()["words"]}, slice(1)))["words"].mask.tolist() == [[True, True], [True, False]]


def test_other_names_cannot_be_joined():
    with pytest.raises(ValueError, match="same names"):
        cat({"a": torch.zeros(1)}, {"b": torch.zeros(1)})


def test_conditions_are_trees_of_their_tensors():
    cond = everything()
    leaves, form = _pytree.tree_flatten(cond)
    assert len(leaves) == 7
    back = _pytree.tree_unflatten([leaf[:2] for leaf in leaves], form)
    assert isinstance(back["words"], Condition)
    assert back["words"].mask.tolist() == [[True, False], [True, True]]
    assert back["class"].mask is None
    assert back["class"].to("cpu").value.tolist() == [4, 5]


SPECS = [
    Classes(("red", "green, light", "3")),
    Numbers(2, ("x", "y"), (1.0, -1.0), (2.0, 0.5)),
    Numbers(1),
    Map(3),
    Map(1, shift=0.0, scale=255.0),
    Sequence(4, 2),
    Tokens(4, 100),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_survives_json(spec):
    again = ConditionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()


def test_fingerprints_tell_specs_apart():
    changed = [
        Classes(("red", "green", "light, 3")),
        Numbers(2, ("x", "y"), (1.0, -1.0), (2.0, 0.4)),
        Map(4),
        Sequence(2, 4),
        Tokens(100, 4),
    ]
    assert len({spec.fingerprint() for spec in [*SPECS, *changed]}) == len(SPECS) + len(changed)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"kind": "picture"}, "unknown kind of condition 'picture'; there are classes, numbers"),
        ({}, "unknown kind of condition None"),
        ({"kind": "map", "channel": 3}, "kind map has no option channel"),
        ({"kind": "tokens", "length": 3}, "kind tokens needs length, vocabulary"),
    ],
)
def test_a_record_of_no_spec_is_refused(record, sentence):
    with pytest.raises(ValueError, match=sentence):
        ConditionSpec.from_json(record)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Classes(()), "names must differ"),
        (lambda: Classes(("a", "a")), "names must differ"),
        (lambda: Numbers(0), "size of numbers must be at least 1"),
        (lambda: Numbers(2, ("x",)), "names must have one entry for each of 2"),
        (lambda: Numbers(1, scale=(0.0,)), "scales positive"),
        (lambda: Numbers(1, shift=(NAN,)), "shifts must be finite"),
        (lambda: Map(0), "channels of a map"),
        (lambda: Map(1, scale=-1.0), "scale positive"),
        (lambda: Sequence(0, 1), "length of a sequence"),
        (lambda: Sequence(1, 0), "size of a sequence"),
        (lambda: Tokens(0, 1), "length of tokens"),
        (lambda: Tokens(1, 0), "vocabulary of tokens"),
    ],
)
def test_a_spec_that_is_none_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("spec", "text", "wanted"),
    [
        (SPECS[0], "red", [0]),
        (SPECS[0], "green, light", [1]),
        (SPECS[0], "1, red ,none,-1", [1, 0, -1, -1]),
        (SPECS[0], "3", [2]),  # a name before a number
        (SPECS[1], "1, -2.5", [[1.0, -2.5]]),
        (SPECS[1], "1,2,3,4", [[1.0, 2.0], [3.0, 4.0]]),
        (SPECS[2], "1e-3,2", [[1e-3], [2.0]]),
    ],
)
def test_texts_are_read(spec, text, wanted):
    read = spec.read(text)
    torch.testing.assert_close(read, torch.tensor(wanted, dtype=read.dtype))
    spec.check(read, "it")


@pytest.mark.parametrize(("channels", "mode", "pixel"), [(1, "L", 51), (3, "RGB", (0, 51, 255)), (4, "RGBA", (0, 51, 255, 102))])
def test_a_picture_is_read_as_a_map(tmp_path, channels, mode, pixel):
    Image.new(mode, (3, 2), pixel).save(tmp_path / "map.png")
    read = Map(channels).read(str(tmp_path / "map.png"))
    wanted = torch.tensor({1: [-0.6], 3: [-1.0, -0.6, 1.0], 4: [-1.0, -0.6, 1.0, -0.2]}[channels], dtype=torch.float32)
    torch.testing.assert_close(read, wanted[None, :, None, None].expand(1, channels, 2, 3))
    Map(channels).check(read, "it")
    torch.testing.assert_close(Map(channels, shift=0.0, scale=255.0).read(str(tmp_path / "map.png")), (read + 1) / 2)


@pytest.mark.parametrize(
    ("spec", "text", "sentence"),
    [
        (SPECS[0], "blue", 'there is no class "blue"; there are red, green, light, 3, or their numbers 0 … 2'),
        (SPECS[0], "7", "class 7 is out of range; the classes are 0 red"),
        (SPECS[1], "1", '"1" is not 2 numbers joined by commas .x, y.'),
        (SPECS[2], "red", '"red" is not a number'),
        (SPECS[2], "nan", '"nan" is not a number'),
        (SPECS[3], "no.png", "there is no such file"),
        (SPECS[3], __file__, "cannot be read as an image"),
        (Map(2), "no.png", "an image, which has 1, 3 or 4"),
        (SPECS[5], "1,2", "cannot be given as text yet"),
        (SPECS[6], "a cat", "cannot be given as text yet"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(spec, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        spec.read(text)


@pytest.mark.parametrize(
    ("spec", "value", "sentence"),
    [
        (SPECS[0], torch.tensor([0, 3]), r"it must be in 0 … 2 \(or be -1 for none\), got 0 to 3"),
        (SPECS[0], torch.tensor([0.0, 1.0]), r"integers \[b\], one class for each example, got float32 \[2\]"),
        (SPECS[0], torch.zeros(2, 1, dtype=torch.long), r"got int64 \[2, 1\]"),
        (SPECS[1], torch.zeros(2, 3), r"floats \[b, 2\], got float32 \[2, 3\]"),
        (SPECS[1], torch.tensor([[0.0, NAN]]), "but 1 entries are NaN"),
        (SPECS[2], torch.tensor([3]), r"floats \[b, 1\], got int64"),
        (SPECS[3], torch.zeros(2, 1, 4, 4), r"floats \[b, 3, …\]"),
        (SPECS[3], torch.zeros(2, 3), "one spatial axis"),
        (SPECS[3], torch.full((1, 3, 2, 2), torch.inf), "but 12 entries"),
        (SPECS[5], torch.zeros(1, 5, 2), "with n up to 4"),
        (SPECS[6], torch.tensor([[0, 100]]), "it must be in 0 … 99"),
        (
            SPECS[6],
            Condition(torch.zeros(1, 2).long(), torch.ones(1).bool(), torch.ones(1, 3).bool()),
            r"the mask of \"it\" must be \[1, 2\]",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(spec, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        spec.check(value, "it")


@pytest.mark.parametrize(
    ("spec", "bad"),
    [
        (SPECS[0], torch.tensor(9)),
        (SPECS[1], torch.tensor([NAN, 0.0])),
        (SPECS[3], torch.full((3, 2, 2), NAN)),
        (SPECS[6], torch.tensor([-3, 900])),
    ],
    ids=["classes", "numbers", "map", "tokens"],
)
def test_what_is_not_given_can_be_anything(spec, bad):
    value = torch.stack([torch.zeros_like(bad), bad])
    spec.check(Condition(value, torch.tensor([True, False])), "it")
    with pytest.raises(ValueError, match="it"):
        spec.check(Condition(value, torch.tensor([True, True])), "it")


def test_places_outside_the_mask_can_be_anything():
    mask = torch.tensor([[True, False]])
    Tokens(2, 5).check(Condition(torch.tensor([[4, 99]]), torch.ones(1).bool(), mask), "it")
    Sequence(2, 1).check(Condition(torch.tensor([[[4.0], [NAN]]]), torch.ones(1).bool(), mask), "it")


def test_the_public_names():
    assert (sf.Condition, sf.as_cond) == (Condition, as_cond)
