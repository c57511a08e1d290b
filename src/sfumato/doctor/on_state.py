"""Checks on the completeness of a run."""

from sfumato.doctor.check import ERROR, NOTE, WARNING, Reading, above, below, check, share
from sfumato.doctor.outcome import Outcome


@check("checkpoint-damaged", ERROR, above(0, "a file that cannot be read is lost"))
def checkpoint_damaged(run: Outcome) -> Reading | None:
    """Files of the checkpoints that are missing or cannot be read."""
    return Reading(
        float(len(run.damage)),
        " ".join(run.damage[:3]),
        "The run can neither be resumed nor sampled from such a checkpoint.",
        "Remove the folder of the damaged checkpoint; --resume continues from the one before it.",
    )


@check("no-checkpoint", ERROR, below(1, "without one there is no model"))
def no_checkpoint(run: Outcome) -> Reading | None:
    """Checkpoints of a run that no process is working on."""
    if run.is_running:
        return None
    done = int(run.records[-1]["step"]) if run.records else 0
    return Reading(
        float(len(run.steps)),
        f"{run.name} has no checkpoint; its curve ends at step {done}.",
        f"It ended before step {min(run.recipe.training.checkpoint_every, run.recipe.training.steps)}, when the first is written.",
        f"sfumato train {run.folder}/recipe.yaml --out {run.folder} --resume starts again",
    )


@check("stopped-early", WARNING, below(1, "a run without a process is finished or was stopped"))
def stopped_early(run: Outcome) -> Reading | None:
    """Share of the steps done by the newest checkpoint, if no process is working on the run."""
    if run.is_running or not run.steps:
        return None
    done, wanted = run.steps[-1], run.recipe.training.steps
    return Reading(
        done / wanted,
        f"The newest checkpoint has {done} of {wanted} steps ({share(done / wanted)}), and no process is working on the run.",
        "It was stopped, killed, or has failed; the learning rate has not decayed, so samples are worse than they will be.",
        f"sfumato train {run.folder}/recipe.yaml --out {run.folder} --resume",
    )


@check("other-data", WARNING, above(0, "fingerprints are equal or not"))
def other_data(run: Outcome) -> Reading | None:
    """Whether the data have changed since the run started."""
    if run.plan.source is None or run.damage:
        return None
    return Reading(
        float(run.data_changed),
        f"The data of the recipe ({run.plan.source.name}, {len(run.plan.source)} examples) have another fingerprint than the manifest's.",
        "The findings on losses and samples compare the model with data that it was not trained on; the run cannot be resumed either.",
        "Restore the old data, or train again.",
    )


@check("data-elsewhere", NOTE, above(0, "checks that need data cannot run without them"))
def data_elsewhere(run: Outcome) -> Reading | None:
    """Whether the run's data cannot be read here."""
    return Reading(
        float(bool(run.plan.refusal) and run.plan.source is None),
        run.plan.refusal,
        "Losses by level, copies and shifts could not be checked.",
        "Give the path of the data: sfumato doctor RUN --set data.path=…",
    )
