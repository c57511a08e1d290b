import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from sfumato.data.scenes import (
    BACKGROUND,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Scenes,
    Share,
    matches,
    parse,
    phrasings,
    read,
    score,
)

both = pytest.mark.parametrize("objects", [1, 2])
ink = np.subtract(BACKGROUND, list(COLOURS.values())).astype(float)


def coverage(batch):
    """How much of each pixel the first object covers, from the image alone; exact where no other object is near."""
    own = ink[[list(COLOURS).index(scene.objects[0].colour) for scene in batch.scenes]]
    return np.einsum("nhwc,nc->nhw", np.array(BACKGROUND) - batch.images.astype(float), own / np.square(own).sum(1, keepdims=True))


def blurred(images, deviation):
    """The images under a Gaussian blur of so many pixels."""
    at = np.arange(images.shape[1])
    kernel = np.exp(-np.square((at[:, None] - at) / deviation) / 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.rint(np.einsum("ij,njkc,lk->nilc", kernel, images.astype(float), kernel)).astype(np.uint8)


def down_and_up(images):
    """The images averaged over 2×2 pixels and enlarged by linear interpolation."""
    half = images.astype(float).reshape(len(images), images.shape[1] // 2, 2, images.shape[1] // 2, 2, 3).mean((2, 4))
    for axis in (1, 2):
        before = np.concatenate([half.take([0], axis), half], axis)
        after = np.concatenate([half, half.take([-1], axis)], axis)
        low, high = (0.25 * before + 0.75 * after), (0.75 * before + 0.25 * after)
        count = half.shape[axis]
        pair = np.stack([low.take(range(count), axis), high.take(range(1, count + 1), axis)], axis + 1)
        half = pair.reshape(*half.shape[:axis], 2 * count, *half.shape[axis + 1 :])
    return np.rint(half).astype(np.uint8)


def noisy(images, deviation):
    noise = np.random.default_rng(0).standard_normal(images.shape)
    return np.clip(np.rint(images + deviation * noise), 0, 255).astype(np.uint8)


@both
@pytest.mark.parametrize(("size", "count"), [(16, 2000), (32, 1000), (64, 250)])
def test_reader_is_right_on_true_pictures(size, objects, count):
    batch = Scenes(size=size, objects=objects, places=tuple(PLACES), seed=1).draw(count)
    readings = read(batch.images)
    for name, share in score(readings, batch).items():
        assert share.count == count, name
        assert share.value >= 0.999, (name, share)
    # By position: a reading lists its objects from left to right, a truth in the order of its relation.
    found = [
        [value for it in reading.objects for value in (it.x, it.y, it.radius)] for reading in readings if len(reading.objects) == objects
    ]
    true = [
        [value for it in sorted(scene.objects, key=lambda it: it.x) for value in (it.x, it.y, it.radius)]
        for reading, scene in zip(readings, batch.scenes, strict=True)
        if len(reading.objects) == objects
    ]
    if objects == 1:
        np.testing.assert_allclose(found, true, atol=0.15 / size)
    else:
        assert np.quantile(np.abs(np.subtract(found, true)), 0.95) < 0.15 / size


@both
@pytest.mark.parametrize(
    ("size", "spoilt", "least"),
    [
        (32, lambda images: noisy(images, 10), 0.995),
        (32, lambda images: noisy(images, 40), 0.99),
        (32, down_and_up, 0.99),
        (16, lambda images: noisy(images, 10), 0.99),
        (16, lambda images: noisy(images, 20), 0.97),
        (16, lambda images: noisy(images, 40), 0.80),
        (16, lambda images: blurred(images, 0.6), 0.97),
        (16, down_and_up, 0.65),
    ],
)
def test_reader_bears_noise_and_blur(size, spoilt, least, objects):
    batch = Scenes(size=size, objects=objects, seed=2).draw(400)
    shares = score(read(spoilt(batch.images)), batch)
    assert shares["all"].value >= least
    assert shares["colour"].value >= min(0.9, least + 0.2)


@pytest.mark.parametrize("size", [16, 32])
def test_nothing_is_recognised_in_noise(size):
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 256, (200, size, size, 3)).astype(np.uint8)
    normal = np.clip(127 + 60 * rng.standard_normal((200, size, size, 3)), 0, 255).astype(np.uint8)
    readings = read(np.concatenate([uniform, normal]))
    assert np.mean([str(reading) == "nothing recognised" for reading in readings]) >= 0.97
    assert all(reading.unknown > 0 or not reading.objects for reading in readings)
    for grey in (0, 128, 235, 255):
        plain = read(np.full((1, size, size, 3), grey, np.uint8))[0]
        assert plain.objects == ()
        assert (plain.unknown > 0) == (grey < 200)


def test_what_is_no_object_is_counted():
    images = Scenes(size=32, places=["top left"], sizes=["small"]).draw(4).images
    images[:, 20:26, 8:30] = BACKGROUND
    images[0, 22:25, 8:30] = COLOURS["red"]  # a bar
    images[1, 20:30, 18:28] = (10, 10, 10)  # black
    images[2, 20:30, 18:28] = COLOURS["red"]  # a second square
    readings = read(images)
    assert [(len(reading.objects), reading.unknown) for reading in readings] == [(1, 1), (1, 1), (2, 0), (1, 0)]
    assert str(readings[0]).endswith("at the top left, and 1 more not recognised")
    wanted = replace(readings[0], unknown=0)
    assert not any(matches(readings[0], wanted).values())
    assert all(matches(wanted, wanted).values())


def test_objects_of_one_colour_are_told_apart():
    one = Scenes(size=32, places=["left"], colours=["green"], sizes=["large"]).draw(80)
    other = Scenes(size=32, places=["right"], colours=["green"], sizes=["small"], seed=1).draw(80)
    apart = 0
    for left, right, reading in zip(one.scenes, other.scenes, read(np.minimum(one.images, other.images)), strict=True):
        (first,), (second,) = left.objects, right.objects
        if second.x - second.radius - first.x - first.radius > 0.09:
            apart += 1
            assert [(it.shape, it.size) for it in reading.objects] == [(it.shape, it.size) for it in (first, second)]
            assert reading.relation == "left of"
    assert apart > 20


@both
def test_scene_depends_on_seed_and_number_alone(objects):
    scenes = Scenes(size=16, objects=objects, held_out=0.2, seed=3)
    whole = scenes.draw(20)
    for start, count in ((0, 7), (7, 1), (8, 12)):
        part, rows = scenes.draw(count, start), slice(start, start + count)
        assert part.scenes == whole.scenes[rows]
        assert part.captions == whole.captions[rows]
        for name in ("images", "numbers", "low", "outline"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])
        for name, numbers in whole.classes.items():
            np.testing.assert_array_equal(part.classes[name], numbers[rows])
    for other in (replace(scenes, seed=4).draw(20), scenes.draw(20, held_out=True), scenes.draw(20, 20)):
        assert not set(other.scenes) & set(whole.scenes)
        assert not np.isclose(other.numbers[:, 0], whole.numbers[:, 0], atol=1e-6).any()
    assert Scenes(size=64, objects=objects, held_out=0.2, seed=3).draw(20).scenes == whole.scenes


@both
def test_arrays_say_what_the_scenes_say(objects):
    batch = Scenes(size=16, objects=objects, colours=["cyan", "red", "blue"], seed=5).draw(300)
    second = [f"{name}2" for name in ("colour", "shape", "size")]
    assert (
        list(batch.classes)
        == list(batch.class_names)
        == ["colour", "shape", "size", *(["place"] if objects == 1 else ["relation", *second])]
    )
    for i, scene in enumerate(batch.scenes):
        said = {name: batch.class_names[name][numbers[i]] for name, numbers in batch.classes.items()}
        for j, it in enumerate(scene.objects):
            mark = "2" if j else ""
            assert (it.colour, it.shape, it.size) == (said["colour" + mark], said["shape" + mark], said["size" + mark])
            at = [batch.numbers[i, batch.number_names.index(name + mark)] for name in ("x", "y", "radius")]
            np.testing.assert_allclose(at, [it.x, it.y, it.radius], rtol=1e-6)
        assert said.get("relation") == scene.relation
        assert said.get("place") == scene.objects[0].place
    for name, numbers in batch.classes.items():
        shares = np.bincount(numbers, minlength=len(batch.class_names[name])) / 300
        np.testing.assert_allclose(shares, 1 / len(batch.class_names[name]), atol=4 / math.sqrt(300 * len(shares)))


@both
def test_objects_lie_apart_and_inside_where_they_are_said_to_lie(objects):
    thirds = {"left": (0, 0.4), "right": (0.6, 1), "top": (0, 0.4), "bottom": (0.6, 1)}
    for scene in Scenes(objects=objects, places=tuple(PLACES), seed=6).draw(1000).scenes:
        for it in scene.objects:
            low, high = SIZES[it.size]
            assert low <= it.radius <= high
            assert it.radius < min(it.x, it.y, 1 - it.x, 1 - it.y) - 0.02
        first = scene.objects[0]
        if objects == 1:
            words = first.place.split()
            for value, names in ((first.x, ("left", "right")), (first.y, ("top", "bottom"))):
                low, high = next((thirds[name] for name in names if name in words), (0.44, 0.56))
                assert low <= value <= high
        else:
            second = scene.objects[1]
            dx, dy = second.x - first.x, second.y - first.y
            along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[scene.relation]
            assert along > first.radius + second.radius + 0.08
            assert abs(across) < 0.65 * along
            assert first.colour != second.colour


def test_colours_are_far_apart():
    for one, other in combinations([BACKGROUND, *COLOURS.values()], 2):
        assert math.dist(one, other) > 100
    for one, other in combinations(ink, 2):
        assert one @ other < math.cos(math.radians(30)) * np.linalg.norm(one) * np.linalg.norm(other)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize(
    ("shape", "area", "perimeter"), [("circle", math.pi, 2 * math.pi), ("square", 4, 8), ("triangle", 2, 2 + 2 * math.sqrt(5))]
)
def test_area_and_outline_are_the_shapes(shape, area, perimeter, size):
    batch = Scenes(size=size, shapes=[shape], seed=7).draw(300)
    radius = size * batch.numbers[:, 2].astype(float)
    drawn, line = coverage(batch), batch.outline[..., 0] / 255
    # A band of one pixel along the border has the perimeter's area: for a circle exactly, for polygons as it keeps its corners.
    for got, expected in ((drawn.sum((1, 2)), area * radius**2), (line.sum((1, 2)), perimeter * radius)):
        assert abs((got / expected).mean() - 1) < 0.012
        np.testing.assert_allclose(got, expected, rtol=0.7 / radius.min())
    # The line covers the pixels that are partly covered, and only pixels within a pixel of such a one.
    edge = (drawn > 0.1) & (drawn < 0.9)
    assert line[edge].min() > 0.2
    whole = np.pad(drawn > 0.98, [(0, 0), (1, 1), (1, 1)])
    none = np.pad(drawn < 0.02, [(0, 0), (1, 1), (1, 1)], constant_values=True)
    for mask in (whole, none):  # pixels whose four neighbours are like them, too
        core = mask[:, 1:-1, 1:-1] & mask[:, 2:, 1:-1] & mask[:, :-2, 1:-1] & mask[:, 1:-1, 2:] & mask[:, 1:-1, :-2]
        assert line[core].mean() < 0.01


def test_outline_of_a_circle_follows_its_radius():
    batch = Scenes(size=64, shapes=["circle"], seed=8).draw(50)
    at = np.arange(64) + 0.5
    x, y, radius = (64 * batch.numbers.astype(float)).T[..., None, None]
    distance = np.hypot(at - x, at[:, None] - y) - radius
    line = batch.outline[..., 0] / 255
    assert line[np.abs(distance) > 0.5 + math.sqrt(0.5)].max() == 0
    assert line[np.abs(distance) < 0.05].min() > 0.8
    assert abs((line * distance).sum() / line.sum()) < 0.02


@both
def test_low_map_is_the_mean_of_blocks(objects):
    batch = Scenes(size=20, objects=objects, seed=9).draw(30)
    assert batch.low.shape == (30, 5, 5, 3)
    for row, column in product(range(5), repeat=2):
        block = batch.images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(30, 16, 3)
        assert np.abs(block.astype(float).mean(axis=1) - batch.low[:, row, column]).max() <= 0.501


def every_scene(objects):
    """Every scene that captions tell apart."""
    if objects == 1:
        for colour, shape, size, place in product(COLOURS, SHAPES, SIZES, PLACES):
            yield Scene((SceneObject(colour, shape, size, place),))
    else:
        for colour, shape, size, relation in product(COLOURS, SHAPES, SIZES, RELATIONS):
            for colour2, shape2, size2 in product(COLOURS, SHAPES, SIZES):
                if colour != colour2:
                    yield Scene((SceneObject(colour, shape, size), SceneObject(colour2, shape2, size2)), relation)


@both
def test_captions_come_back_as_what_they_say(objects):
    for i, scene in enumerate(every_scene(objects)):
        said = phrasings(scene)
        assert len(set(said)) == len(said) == (8 if objects == 1 else 6)
        assert [parse(caption) for caption in said[: 3 if i % 5 == 0 else 1]] == [scene] * (3 if i % 5 == 0 else 1)
        for caption in said if i % 5 == 0 else ():
            wanted = parse(caption)
            judged = matches(scene, wanted)
            assert all(judged.values())
            # It asks for exactly the attributes whose words it says.
            words = {"size": scene.objects[0].size, "place": PLACES[scene.objects[0].place][2] if objects == 1 else "-"}
            for name, word in words.items():
                assert (name in judged) == (word in caption)
            assert {"colour", "shape"} <= set(judged)
            assert ("relation" in judged) == (objects == 2)


def test_drawn_captions_are_true_and_varied():
    for objects in (1, 2):
        batch = Scenes(size=32, objects=objects, seed=10).draw(200)
        assert all(share.value == 1 for share in score(batch.scenes, map(parse, batch.captions)).values())
        forms = [phrasings(scene).index(told) for scene, told in zip(batch.scenes, batch.captions, strict=True)]
        assert set(forms) == set(range(len(phrasings(batch.scenes[0]))))
        # What is named first lies, in the picture, where the relation says: seen by its colour, at the mean of its pixels.
        for image, scene, told in zip(batch.images, batch.scenes, batch.captions, strict=True):
            first, *second = [name for name in told.replace(",", "").split() if name in COLOURS]
            near = {name: np.argwhere((image == COLOURS[name]).all(-1)).mean(axis=0) for name in (first, *second)}
            assert len(near) == objects
            if objects == 2:
                down, right = near[second[0]] - near[first]
                inverted = " with " in told
                truth = {"above": down, "below": -down, "left": right, "right": -right}
                word = next(name for name in truth if name in told.split())
                assert (truth[word] > 2) != inverted, (told, scene)
                assert abs(truth[word]) > 2


def test_captions_of_a_wrong_scene_are_seen():
    scene = parse("a small red circle above a large blue square")
    for caption, wrong in (
        ("a small green circle above a large blue square", "colour"),
        ("a small red triangle above a large blue square", "shape"),
        ("a large red circle above a large blue square", "size"),
        ("a small red circle to the left of a large blue square", "relation"),
        ("a large blue square above a small red circle", "relation"),
        ("a large blue square with a small red circle below it", "relation"),
    ):
        judged = matches(scene, parse(caption))
        assert not judged["all"]
        assert [name for name, right in judged.items() if not right and name != "all"] == [wrong], caption
    # Bound wrongly: colours and shapes of the picture each occur, but not together.
    judged = matches(scene, parse("a blue circle above a red square"))
    assert judged["count"]
    assert not judged["all"]
    assert all(matches(scene, parse("A large blue square  below a red circle.".replace("a red", "a small red"))).values())
    place = matches(parse("a red circle at the top left"), parse("a red circle in the centre"))
    assert place == {"count": True, "colour": True, "shape": True, "place": False, "all": False}
    assert matches(scene, parse("a small red circle")) == dict.fromkeys(("count", "colour", "shape", "size", "all"), False)


def test_score_counts_what_was_wanted():
    batch = Scenes(size=16, seed=11).draw(4)
    shown = read(batch.images)
    wanted = [parse(phrasings(scene)[-1]) for scene in batch.scenes[:3]] + [parse("a small red circle at the top left")]
    shown[3] = parse("a large red circle at the top left")
    shares = score(shown, wanted)
    assert (shares["all"], shares["size"], shares["place"]) == (Share(3, 4), Share(0, 1), Share(1, 1))
    # The standard deviation of the mean of four draws, three of them right, from draws.
    means = (np.random.default_rng(0).random((100_000, 4)) < 0.75).mean(axis=1)
    assert shares["all"].error == pytest.approx(means.std(), rel=0.01)


def undirected(combination):
    """The combination without the order in which it is told."""
    colour, shape, relation, *second = combination
    ends = frozenset({((colour, shape), relation), (tuple(second), RELATIONS[relation])})
    return ends


@both
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_held_out_combinations_are_never_among_the_seen(objects, share):
    scenes = Scenes(size=16, objects=objects, held_out=share)
    seen, held = scenes.combinations(), scenes.combinations(held_out=True)
    count = 18 if objects == 1 else 18 * 15 * 4
    assert len(seen) + len(held) == len(set(seen) | set(held)) == count
    assert len(held) == pytest.approx(max(share * count, 1 if objects == 1 else 2), abs=1)
    if objects == 2:
        assert not set(map(undirected, seen)) & set(map(undirected, held))
    for column in zip(*seen, strict=True):
        assert set(column) == set(column) & (set(COLOURS) | set(SHAPES) | set(RELATIONS))
    # Every name is seen, and held out about as often as the others.
    for column, whole in zip(zip(*held, strict=True), zip(*seen, strict=True), strict=True):
        often = [column.count(name) for name in set(whole)]
        assert max(often) - min(often) <= max(2, 0.35 * np.mean(often))
    assert replace(scenes, seed=9).combinations(held_out=True) == held
    for wanted, out in ((seen, False), (held, True)):
        batch = scenes.draw(200, held_out=out)
        for scene in batch.scenes:
            first, *second = [(it.colour, it.shape) for it in scene.objects]
            assert (first if objects == 1 else (*first, scene.relation, *second[0])) in wanted


def test_combinations_held_out_by_name():
    one = Scenes(held_out=[["blue", "square"]])
    assert one.combinations(held_out=True) == (("blue", "square"),)
    pair = Scenes(objects=2, held_out=[("red", "circle", "below", "blue", "square")])
    assert set(pair.combinations(held_out=True)) == {
        ("red", "circle", "below", "blue", "square"),
        ("blue", "square", "above", "red", "circle"),
    }
    each = Scenes(objects=2, held_out=[("blue", "square")])
    assert all(("blue", "square") in (it[:2], it[3:]) for it in each.combinations(held_out=True))
    assert not any(("blue", "square") in (it[:2], it[3:]) for it in each.combinations())
    assert len(each.combinations(held_out=True)) == 2 * 15 * 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 15}, "16 to 64 pixels and a multiple of 4, got 15"),
        ({"size": 18}, "multiple of 4, got 18"),
        ({"objects": 3}, "1 or 2 objects, got 3"),
        ({"seed": -1}, "at least 0, got -1"),
        ({"colours": ["red", "pink"]}, "colours of scenes must be some of red, .*; got red, pink"),
        ({"shapes": []}, "shapes of scenes must be some of .*; got none"),
        ({"sizes": ["small", "small"]}, "each once; got small, small"),
        ({"objects": 2, "colours": ["red"]}, "give at least two colours, got only red"),
        ({"held_out": 1.0}, "below 1, got 1.0"),
        ({"held_out": 0.95}, "hold out fewer"),
        ({"held_out": [("pink", "circle")]}, r"the combination \('pink', 'circle'\), which these scenes do not have"),
        ({"colours": ["red"], "shapes": ["circle"], "held_out": [("red", "circle")]}, "some must be left"),
    ],
)
def test_wrong_options_are_told(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Scenes(**options)


def test_wrong_use_is_told():
    scenes = Scenes(size=16)
    for call, sentence in (
        (lambda: scenes.draw(0), "at least one scene"),
        (lambda: scenes.draw(1, -1), "start=-1"),
        (lambda: scenes.draw(1, held_out=True), "hold out no combinations"),
        (lambda: read(np.zeros((1, 16, 20, 3), np.uint8)), "16 pixels a side or more; got uint8"),
        (lambda: read(np.zeros((1, 16, 16, 3), np.int64)), "got int64"),
        (lambda: parse("a pink circle"), "cannot read the caption 'a pink circle'; write one like"),
        (lambda: parse("a red circle above a blue"), "cannot read the caption"),
        (lambda: phrasings(Scene()), "got 0 and relation=None"),
        (lambda: phrasings(Scene((SceneObject("red"),))), "colour and shape; give both"),
        (lambda: score([], []), "at least one; got 0 and 0"),
        (lambda: score([Scene()], [Scene(), Scene()]), "got 1 and 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
