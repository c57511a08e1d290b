"""`sfumato plot`: what the picture is drawn from, and that it shows it."""

import json

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.curves import History, _running_mean, draw


def make(folder, *, steps=200, scale=1.0, size=(60, 40), **changes):
    """A run folder with records of a known course, and a sheet of one flat colour."""
    (folder / "samples").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record = {"step": step, "seconds": step / 10, "images": 8 * step, "loss": scale / step, "gradient_norm": 1 + step % 3}
            record |= {f"loss@{level:+d}": scale * (20 + level) / step for level in (-8, 0, 8)} | {"learning_rate": 1e-3, **changes}
            file.write(json.dumps(record) + "\n")
    for step in (steps // 2, steps):
        Image.new("RGB", size, (200, 0, 255 * step // steps)).save(folder / "samples" / f"{step:08d}.png")
    return folder


def colours(image):
    """Each colour of a picture, with its count."""
    return {colour: count for count, colour in image.getcolors(image.width * image.height)}


def test_records_are_read_as_they_were_written(tmp_path):
    history = History.read(make(tmp_path / "run"))
    steps, values = history.curves["loss"]
    assert list(steps) == list(range(1, 201))
    np.testing.assert_allclose(values * steps, 1.0)
    assert list(history.levels("loss")) == [-8, 0, 8]
    np.testing.assert_allclose(history.levels("loss")[8][1] * steps, 28.0)
    assert history.sheet == tmp_path / "run" / "samples" / "00000200.png"
    assert history.summary() == "200 steps in 20 s"


def test_a_last_line_that_is_being_written_is_left_out(tmp_path):
    path = make(tmp_path / "run", steps=5) / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert list(History.read(tmp_path / "run").curves["step"][1]) == [1, 2, 3, 4]


def test_the_picture_has_a_panel_for_what_there_is(tmp_path):
    """Four panels are a row; with speed, memory, bits and samples they are eight."""
    few, many = make(tmp_path / "few"), make(tmp_path / "many", images_per_second=9.0, peak_memory_bytes=3e8, **{"bits@+4": 0.5})
    for sheet in (few / "samples").iterdir():
        sheet.unlink()
    assert draw([many]).height > draw([few]).height + 250


def test_a_running_mean_leaves_out_what_is_not_finite():
    values = np.ones(300)
    values[[50, 51, 120]] = np.nan, np.inf, -np.inf
    np.testing.assert_allclose(_running_mean(values), 1.0)
    ramp = np.arange(300.0)
    np.testing.assert_allclose(_running_mean(ramp)[10:-10], ramp[10:-10])


def test_the_latest_sheet_is_shown(tmp_path):
    shown = colours(draw([make(tmp_path / "run")]))
    assert shown.get((200, 0, 255), 0) > 10_000
    assert (200, 0, 127) not in shown


def test_several_runs_have_a_colour_each(tmp_path):
    first, second = make(tmp_path / "first"), make(tmp_path / "second", scale=3.0)
    blue, orange = (0x30, 0x50, 0x7A), (0xC8, 0x74, 0x2F)
    alone, both = colours(draw([first])), colours(draw([first, second]))
    assert blue in alone
    assert orange not in alone
    assert both[blue] > 100
    assert both[orange] > 100


def test_steps_that_were_left_out_are_marked(tmp_path):
    red = (0xC8, 0x45, 0x2F)
    assert red in colours(draw([make(tmp_path / "bad", rejected=1)]))
    assert red not in colours(draw([make(tmp_path / "good", rejected=0)]))


@pytest.mark.parametrize("changes", [{"loss": float("nan")}, {"loss": -1.0}, {"loss": 0.0}, {"gradient_norm": float("inf")}])
def test_values_of_any_kind_are_drawn(tmp_path, changes):
    assert draw([make(tmp_path / "run", **changes)]).width > 1000


def test_one_record_is_enough(tmp_path):
    assert draw([make(tmp_path / "run", steps=1)]).width > 1000


def test_the_command_writes_into_the_run(tmp_path, capsys):
    run = make(tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        main(["plot", str(run)])
    assert stopped.value.code == 0
    with Image.open(run / "curves.png") as image:
        assert image.width > 1000
    assert str(run / "curves.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "nowhere"], "nowhere has no metrics.jsonl"),
        (["plot", "RUN", "--out", "curves.pdf"], "must end in .png"),
        (["plot", "EMPTY"], "has no record yet"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, capsys, arguments, message):
    make(tmp_path / "RUN")
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "EMPTY" / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / word) if word.isupper() else word for word in arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
