"""Options are values: they cannot change under a walk, they compare and print by what they hold, and they can be pickled."""

import dataclasses
import pickle

import pytest

import sfumato as sf

VALUES = [
    sf.steps.Ancestral(),
    sf.steps.DDIM(),
    sf.steps.EulerMaruyama(),
    sf.steps.Heun(),
    sf.steps.Multistep(),
    sf.steps.UniPC(),
    sf.steps.AdamsBashforth(),
    sf.steps.Langevin(),
    sf.steps.PredictorCorrector(),
    sf.spacing.karras(),
    sf.spacing.openai_sections((2, 3)),
    sf.Cosine(),
    sf.LinearVP(),
    sf.SubVP(),
    sf.VE(),
    sf.Flow(),
    sf.loss.Uniform(sf.Cosine()),
    sf.loss.Stratified(sf.Cosine()),
    sf.loss.LogNormal(sf.Cosine()),
    sf.likelihood.Exact(),
    sf.likelihood.Hutchinson(),
    sf.likelihood.Uniform(),
    sf.likelihood.TruncatedNormal(),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_an_option_is_a_value(value):
    assert dataclasses.is_dataclass(value)
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))


@pytest.mark.parametrize(
    "kind", [sf.Level, sf.Prediction, sf.Normal, sf.likelihood.Bound, sf.SamplingState, sf.FlowResult], ids=lambda k: k.__name__
)
def test_a_result_cannot_change(kind):
    assert kind.__dataclass_params__.frozen
    assert hasattr(kind, "__slots__")


def test_a_copy_computes_its_own_schedule():
    task = sf.Diffusion(net=sf.nets.options.MLPNet())
    before = task.noise
    assert isinstance(task.model_copy(update={"schedule": sf.tasks.options.CurveSchedule(kind="flow")}).noise, sf.Flow)
    assert task.noise is before
