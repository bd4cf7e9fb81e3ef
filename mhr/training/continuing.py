"""Training on from the adapter of a finished run: as it is, or as the average of its skills (MHR-mu, arXiv 2211.03831).

A phase is a run of its own, with an optimizer, a warm-up and a schedule of its own. Published zero-shot MHR-mu is such a phase;
what it is compared with is the same run going on, as it is, for as many steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from mhr.adapters import attach_checkpoint, collapse, plain_checkpoint, read_adapter
from mhr.backbones import carry_heads
from mhr.errors import ConfigError, TaskError
from mhr.runs.config import differences
from mhr.runs.run import RunFolder
from mhr.runs.settings import AS_AVERAGE, RunConfig
from mhr.task_heads import TaskHeads


def run_continued(config: RunConfig) -> RunFolder | None:
    """The run that `config` goes on from; None where there is none.

    Raises CheckpointError for a folder that is no run and for a run that is not done, ConfigError for a run whose method or
    adapter the settings change, or that has nothing to go on with.
    """
    if config.continue_from is None:
        return None
    run = RunFolder.open_pretrained(config.continue_from)
    run.result()
    before = run.config()
    if before.method != config.method:
        raise ConfigError(f"method is {config.method!r}, but run {run.path} has {before.method!r}: leave it out")
    if config.adapter is None or before.adapter is None:
        raise ConfigError(
            f"run {run.path} trained all weights and has no adapter to go on with: begin with its model, as in --model {run.model}"
        )
    for name, then, now in differences(before.adapter.to_dict(), config.adapter.to_dict()):
        raise ConfigError(
            f"adapter.{name} is {now!r}, but run {run.path} has {then!r}, and an adapter that goes on stays as it is: leave it out"
        )
    if before.ends_in_mu and config.continue_as != AS_AVERAGE:
        raise ConfigError(f"run {run.path} ended as the average of its skills: go on with that, by --continue-as-mu")
    return run


def attach_source(
    model: PreTrainedModel, run: RunFolder, config: RunConfig, tasks: Sequence[str], heads: TaskHeads | None
) -> str:
    """Attach the adapter of `run`, or one plain adapter with the factors averaged over its skills, for these tasks; returns a
    line for the notes. heads: of these tasks, which go on with the values that the run has for them; others are fresh. Raises TaskError for tasks that its routing does not know, CheckpointError for another base model."""
    checkpoint = read_adapter(run.adapter)
    assert config.adapter is not None
    if (heads is None) != (checkpoint.heads is None):
        ours, theirs = ("ranks choices" if own is None else "has heads" for own in (heads, checkpoint.heads))
        raise ConfigError(
            f"head is {config.head!r}, with which this run {ours}, but run {run.path} {theirs}: go on with the head that it has"
        )
    if config.continue_as == AS_AVERAGE:
        n_skills = checkpoint.config.skills_for(len(checkpoint.tasks))
        attach_checkpoint(plain_checkpoint(collapse(checkpoint, None)), model).set_tasks(tasks)
        _carry(model, heads)
        return f"begins with the average of the skills of {run.path}, S = {n_skills}"
    if config.adapter.routing.needs_tasks:
        known = set(checkpoint.tasks)
        unknown = [task for task in tasks if task not in known]
        if unknown:
            raise TaskError(
                f"task {unknown[0]!r} is not among the {len(checkpoint.tasks)} tasks of run {run.path} (nor are {len(unknown) - 1} more), and its "
                "routing goes on as it is: leave the task out, or use --continue-as-mu"
            )
    attach_checkpoint(checkpoint, model).set_tasks(tasks)
    _carry(model, heads)
    return f"begins with the adapter of {run.path}"


def _carry(model: PreTrainedModel, heads: TaskHeads | None) -> None:
    if heads is not None:
        carry_heads(model, heads)
