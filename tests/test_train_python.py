"""Training from Python: own modules, own data, callbacks, fine-tuning; and a plain loop with parts of sfumato."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sfumato as sf

FEW = sf.Training(steps=20, batch=16, warmup=2, log_every=5, checkpoint_every=10, trackers=())
POINTS = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


class OwnNet(nn.Module):
    """A network of the user's own: (x, log_snr, cond) to x's size."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size + 1, 32), nn.SiLU(), nn.Linear(32, size))

    def forward(self, x, log_snr, cond=None):
        return self.layers(torch.cat([x, log_snr[:, None] / 10], dim=1))


def weights(folder: Path, step: int = 20) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "checkpoints" / f"{step:08d}").glob("*.safetensors")}


def test_an_own_module_is_trained_loaded_and_sampled(tmp_path):
    net = OwnNet()
    before = net.layers[0].weight.detach().clone()
    model = sf.train(sf.Diffusion(net=net, schedule=sf.Flow()), POINTS, tmp_path / "run", training=FEW)
    torch.testing.assert_close(net.layers[0].weight, before)  # the user's own module is not touched
    again = sf.load(tmp_path / "run", module=OwnNet())
    np.testing.assert_array_equal(model.sample(5).values, again.sample(5).values)
    assert isinstance(again.schedule, sf.Flow)
    assert repr(model).startswith(f"Model({tmp_path / 'run'}: a diffusion model of [2]")


def test_a_run_of_an_own_module_needs_it_back(tmp_path):
    sf.train(sf.Diffusion(net=OwnNet()), POINTS, tmp_path / "run", training=FEW)
    with pytest.raises(ValueError, match=r"trained with your own network.*sf\.load\(.*module=NETWORK\)"):
        sf.load(tmp_path / "run")
    with pytest.raises(sf.CheckpointError, match="size mismatch"):
        sf.load(tmp_path / "run", module=OwnNet(3))


def test_a_module_that_does_not_fit_the_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="your network does not accept these data"):
        sf.train(sf.Diffusion(net=OwnNet(3)), POINTS, tmp_path / "run", training=FEW)
    assert not (tmp_path / "run").exists()


class Items(Dataset):
    """A map-style data set whose items are random: each is a point with noise, and its side as a label."""

    def __len__(self):
        return len(POINTS)

    def __getitem__(self, row):
        return torch.from_numpy(POINTS[row]) + 0.1 * torch.randn(2), int(POINTS[row, 0] > 0)


@pytest.mark.parametrize(
    "source",
    [POINTS, torch.from_numpy(POINTS), (POINTS, (POINTS[:, 0] > 0).astype(np.int64)), TensorDataset(torch.from_numpy(POINTS)), Items()],
    ids=["array", "tensor", "array and labels", "TensorDataset", "random items"],
)
def test_data_of_the_user_train_and_resume_to_the_same_bits(tmp_path, source):
    task = sf.Diffusion(net=sf.nets.options.MLPNet(width=16, depth=1))
    whole = sf.train(task, source, tmp_path / "whole", training=FEW)
    stops = iter([False] * 12 + [True])
    with pytest.raises(sf.Stopped):
        sf.train(task, source, tmp_path / "parts", training=FEW, callbacks=sf.Callbacks(should_stop=lambda: next(stops)))
    sf.train(task, source, tmp_path / "parts", training=FEW, resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert list(whole.spec.conditions) == (["labels"] if whole.spec.classes else [])


def test_items_are_random_by_seed_epoch_and_row():
    source = sf.data.wrapped.TorchSource(Items())
    first, later = (sf.Draw(seed=0, step=step, count=200, rows=slice(0, 200)) for step in (1, 2))
    rows = np.arange(200)
    torch.testing.assert_close(source.batch(rows, first).x, source.batch(rows, first).x)
    torch.testing.assert_close(source.batch(rows[::-1], first).x.flip(0), source.batch(rows, first).x)  # a row's noise is its own
    assert (source.batch(rows, first).x - source.batch(rows, later).x).abs().min() > 0  # another epoch, other noise
    state = torch.random.get_rng_state()
    source.batch(rows, first)
    assert torch.equal(state, torch.random.get_rng_state())


class Batches:
    """An iterable of batches that begins anew each time; `seed` None shuffles differently each time."""

    def __init__(self, seed=0):
        self.seed = seed

    def __iter__(self):
        rng = np.random.default_rng(self.seed)
        for _ in range(6):
            yield torch.from_numpy(POINTS[rng.integers(0, 200, 16)])


def test_an_iterable_of_batches_trains_and_resumes(tmp_path):
    task = sf.Diffusion(net=sf.nets.options.MLPNet(width=16, depth=1))
    sf.train(task, Batches(), tmp_path / "whole", training=FEW)
    stops = iter([False] * 12 + [True])
    with pytest.raises(sf.Stopped):
        sf.train(task, Batches(), tmp_path / "parts", training=FEW, callbacks=sf.Callbacks(should_stop=lambda: next(stops)))
    sf.train(task, Batches(), tmp_path / "parts", training=FEW, resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_an_iterable_that_cannot_replay_is_refused(tmp_path):
    task = sf.Diffusion(net=sf.nets.options.MLPNet(width=16, depth=1))
    stops = iter([False] * 4 + [True])
    with pytest.raises(sf.Stopped):
        sf.train(task, Batches(None), tmp_path / "run", training=FEW, callbacks=sf.Callbacks(should_stop=lambda: next(stops)))
    with pytest.raises(ValueError, match="was started with another data|does not replay"):
        sf.train(task, Batches(None), tmp_path / "run", training=FEW, resume=True)
    with pytest.raises(ValueError, match="an iterator can be read only once"):
        sf.train(task, iter(Batches()), tmp_path / "other", training=FEW)


def test_a_data_loader_is_an_iterable(tmp_path):
    loader = DataLoader(TensorDataset(torch.from_numpy(POINTS)), batch_size=16)
    model = sf.train(sf.Diffusion(net=OwnNet()), sf.data.wrapped.IterableStream(loader), tmp_path / "run", training=FEW)
    assert model.sample(3).values.shape == (3, 2)


def test_callbacks_are_called(tmp_path):
    seen: dict[str, list] = {"steps": [], "logs": [], "checkpoints": [], "messages": []}
    calls = sf.Callbacks(
        on_step=lambda step, loss: seen["steps"].append((step, loss)),
        on_log=seen["logs"].append,
        on_checkpoint=seen["checkpoints"].append,
        on_message=seen["messages"].append,
    )
    more: list[int] = []
    both = [calls, sf.Callbacks(on_step=lambda step, loss: more.append(step))]
    sf.train(sf.Diffusion(net=OwnNet()), POINTS, tmp_path / "run", training=FEW, callbacks=both)
    assert [step for step, _ in seen["steps"]] == more == list(range(1, 21))
    assert [record["step"] for record in seen["logs"]] == [5, 10, 15, 20]
    assert seen["logs"] == [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [path.name for path in seen["checkpoints"]] == ["00000010", "00000020"]
    assert all(path.is_dir() for path in seen["checkpoints"])


def test_a_recipe_has_its_own_training(tmp_path):
    recipe = sf.load_recipe("swiss-roll", ["training.steps=2", "data.count=50"])
    with pytest.raises(ValueError, match="a recipe has its own training"):
        sf.train(recipe, out=tmp_path / "run", training=FEW)


def test_a_folder_in_use_by_another_training_is_refused(tmp_path):
    from sfumato.training.folder import only_writer

    held, done = threading.Event(), threading.Event()

    def hold():
        with only_writer(tmp_path / "run"):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        with pytest.raises(ValueError, match="another process is training into"):
            sf.train(sf.Diffusion(net=OwnNet()), POINTS, tmp_path / "run", training=FEW)
    finally:
        done.set()
        thread.join()


def test_a_source_that_changed_is_refused(tmp_path):
    task = sf.Diffusion(net=OwnNet())
    sf.train(task, POINTS, tmp_path / "run", training=FEW)
    with pytest.raises(ValueError, match="started with another data"):
        sf.train(task, POINTS + 1, tmp_path / "run", training=FEW.model_copy(update={"steps": 30}), resume=True)


def test_fine_tuning_begins_with_the_weights_of_a_run(tmp_path):
    task = sf.Diffusion(net=sf.nets.options.MLPNet(width=16, depth=1))
    first = sf.train(task, POINTS, tmp_path / "first", training=FEW)
    labels = (POINTS[:, 0] > 0).astype(np.int64)
    still = FEW.model_copy(update={"rate": 1e-12, "steps": 1, "checkpoint_every": 1})
    said: list[str] = []
    calls = sf.Callbacks(on_message=said.append)
    second = sf.train(task, (POINTS, labels), tmp_path / "second", training=still, init_from=tmp_path / "first", callbacks=calls)
    assert any("new conditions, without effect at first: labels" in text for text in said)
    x, level = torch.randn(7, 2), sf.Cosine().level(0.5)
    for cond in ({"labels": torch.tensor([0, 1, -1, 0, 1, -1, 0])}, None):  # the new condition adds nothing yet
        torch.testing.assert_close(second.predictor(x, level, cond).x0, first.predictor(x, level).x0, rtol=1e-4, atol=1e-5)


def test_a_wider_network_keeps_the_old_weights_in_their_place(tmp_path):
    old, new = nn.Linear(2, 3), nn.Linear(4, 3)
    from safetensors.torch import save_file

    from sfumato.training.initial import begin_from

    save_file({name: value.contiguous() for name, value in old.state_dict().items()}, tmp_path / "w.safetensors")
    said = begin_from(new, str(tmp_path / "w.safetensors"))
    x = torch.randn(5, 4)
    torch.testing.assert_close(new(x), old(x[:, :2]))  # the new inputs weigh nothing
    assert "1 of them padded with zeros" in said
    with pytest.raises(ValueError, match="there is no file"):
        begin_from(new, "missing.safetensors")


def test_sampling_with_own_noise_steps_and_an_end(tmp_path):
    model = sf.train(sf.Diffusion(net=OwnNet()), POINTS, tmp_path / "run", training=FEW)
    noise = sf.normal_like(torch.empty(6, 2), sf.row_generators(0, range(6)))
    np.testing.assert_array_equal(model.sample(6, noise=noise, batch=4).values, model.sample(6, batch=6).values)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    model.sample(6, steps=5, on_step=lambda i, x, x0: seen.append((i, x.clone(), x0.clone())))
    assert [i for i, _, _ in seen] == list(range(5))
    np.testing.assert_allclose(model.spec.codec.decode(seen[-1][1]), model.sample(6, steps=5).values)

    class Cancelled(Exception):
        pass

    def cancel(i, x, x0):
        if i == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.sample(6, steps=5, on_step=cancel)
    with pytest.raises(ValueError, match=r"noise must have the shape \[6, 2\]"):
        model.sample(6, noise=noise[:3])


@pytest.mark.usefixtures("unchecked")
def test_the_plain_loop_of_the_readme_runs_and_learns():
    """The ten lines in the README, as they stand there, with fewer steps."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = text.split("<!-- plain loop -->")[1].split("```python")[1].split("```")[0]
    assert len([line for line in code.strip().splitlines() if line.strip()]) <= 14
    names: dict = {}
    exec(compile(code.replace("range(1, 2001)", "range(1, 301)"), "README", "exec"), names)
    x = names["x"]
    radius = x.norm(dim=1)
    assert x.shape[1] == 2
    assert 0.5 < float(radius.mean()) < 3
