"""Pretraining: one bank of adapters (or all weights) on many tasks at once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters import checkpoint_of, collapse, kind_of, plain_checkpoint, save_adapter, write_adapter
from mhr.backbones import forget_untrained, load_backbone, take_heads, untrained_modules
from mhr.data.samplers import ExampleDataset, TaskSampler, weights_of
from mhr.errors import MhrError, TrainingError
from mhr.files import held_in, writing_folder
from mhr.layers import attach
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.objectives import make_objective
from mhr.objectives.fit import check_fit, notes_on
from mhr.objectives.lengths import fit_data
from mhr.objectives.packing import packed_collator
from mhr.objectives.usable import check_chats, describe_head, heads_for, usable_tasks
from mhr.runs.checkpoints import newest_complete, step_of
from mhr.runs.config import flat, to_dict
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig, paths_read, with_chat_template
from mhr.runs.tasks import read_tasks
from mhr.task_heads import RANK
from mhr.training.continuing import attach_source, run_continued
from mhr.training.feeding import make_feed
from mhr.training.masters import check_masters, train_whole
from mhr.training.optimizers import check_optimizer
from mhr.training.peak import peak_memory
from mhr.training.processes import check_precision, over_processes, processes, raise_together
from mhr.training.reporting import reporting
from mhr.training.seeding import seed_bank
from mhr.training.sharding import check_sharding
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from mhr.training.validation import MakeScorer, Validator, hold_validation
from mhr.training.watch import BarOnDemand, ProgressBar, TensorBoard

# Settings that a resumed run may change, because they do not decide what it computes.
FREE = {
    *("train.save_every", "train.keep_checkpoints", "train.log_every", "train.report_to", "train.fsdp"),
    *("data.workers", "data.cache", "adapt"),
}


@one_writer
def pretrain(
    config: RunConfig,
    output: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    scorer: MakeScorer | None = None,
) -> RunFolder:
    """Train `config.method` on the training tasks of `config.tasks`; the result lies in the run folder `output`.

    resume     go on from the newest complete checkpoint there; without one, begin. With another number of processes, sharded
               or not, the global batch has to be that of the run
    overwrite  delete what an earlier run left there
    progress   show a bar on standard error
    scorer     what scores validation examples, where `train.eval_every` asks for some: `mhr.evaluation.choice_scorer` ranks
               their choices. None: they have a loss and no score

    Works under torchrun; the global batch is then batch_size x accumulation x processes, and `train.fsdp` shards the base. Raises MhrError for settings,
    data or folders that do not fit, before anything is written; TrainingError for a loss that is not finite; Interrupted
    on Ctrl-C, after a checkpoint.
    """
    config = with_chat_template(_as_begun(config, output) if resume else config)
    state = processes()
    sharded = check_sharding(config)
    check_precision(config.train.precision)
    check_optimizer(config.train.optimizer)
    reporters = reporting(config.train.report_to)
    source = run_continued(config)
    RunFolder.check(output, overwrite=overwrite, resume=resume, reads=paths_read(config))
    set_seed(config.train.seed)
    model, tokenizer = load_backbone(config.model, config.kind, Loading.of(config), config.head)
    kind = kind_of(model)
    check_fit(model, tokenizer, kind)
    data, lowered = fit_data(model, tokenizer, kind, config.data, config.model)
    tasks, left_out = usable_tasks(read_tasks(config.tasks, config.data).training(), kind, tokenizer, data, config.head)
    heads = heads_for(tasks, kind, config.head, config.share_heads)
    if kind == "encoder":
        heads = take_heads(model, heads)
    drawn = untrained_modules(model)
    held = hold_validation(tasks, kind, config.train, heads) if config.train.validates else None
    tasks = tasks if held is None else held.tasks
    examples = ExampleDataset(tasks)
    targets: list[str] = []
    sampler = TaskSampler(
        examples.sizes,
        config.data.sampler,
        temperature=config.data.temperature,
        max_per_task=config.data.max_per_task,
        weights=weights_of(config.data.weights, examples.tasks, left_out),
        seed=config.train.seed,
    )
    epochs = config.train.epochs
    config = replace(config, train=config.train.lasting(len(sampler), state.num_processes))
    objective = make_objective(kind, config.train, heads)
    collator = objective.collator(tokenizer, data.max_input_length, data.max_target_length, data.chat)
    check_chats(collator, tasks)
    validation = None
    if held is not None:
        score = None if scorer is None else scorer(model, tokenizer, kind, replace(config, data=data))
        validation = Validator(held.examples, collator, config.train, score)
    if data.packing:
        collator = packed_collator(model, objective, collator)
    if config.adapter is None:
        train_whole(model)
    else:
        if source is None:
            targets = attach(model, config.adapter, list(tasks)).notes
        else:
            targets = [attach_source(model, source, config, list(tasks), heads)]
        check_masters(model)
        if config.init_skills and not (resume and newest_complete(RunFolder(output, {}).checkpoints)[0]):
            seed_bank(model, config.init_skills)
    with BarOnDemand(len(examples), "tokenise", progress and state.is_main_process) as told:
        feed = make_feed(config, objective, collator, examples, state, told)
    run, checkpoint = _open(config, output, state, resume, overwrite)
    if run.status == "done":
        return run
    if state.is_main_process:
        run.start(
            config,
            kind="pretrain",
            method=config.method,
            mode=None,
            base=config.model,
            model_kind=kind,
            head=describe_head(kind, heads),
            tasks=list(tasks),
            left_out=left_out,
            notes=[*filter(None, (lowered, feed.note, held and held.note)), *notes_on(tokenizer, kind), *targets],
            examples=len(examples),
            validation=None if held is None else {task: len(part) for task, part in held.examples.items()},
            epochs=epochs,
            processes=state.num_processes,
            global_batch=config.train.batch_size * config.train.accumulation * state.num_processes,
            sharded=sharded,
            parameters=count_parameters(model),
            new_modules=drawn,
        )
    with ProgressBar(config.train.steps, f"pretrain {config.method}", progress and state.is_main_process) as bar:
        bar.skip(0 if checkpoint is None else step_of(checkpoint))
        for line in run.info.get("skipped", ()):
            bar.note(f"{line}; going on from {run.info['resumed_from'] or 'the beginning'}")
        trainer = RoutedTrainer(
            model, tokenizer, objective, examples, sampler, collator, run, config.model,
            feed=feed, sharded=sharded, validation=validation, callbacks=[bar, TensorBoard(run.logs), *reporters],
        )  # fmt: skip
        fit(trainer, checkpoint)
    truncated, memory = over_processes(trainer.truncation).describe(), peak_memory()
    if state.is_main_process:
        save_result(model, tokenizer, run, config.model, trainer.result_step)
        best, steps = best_of(run, trainer), trainer.state.global_step
        run.write(status="done", steps=steps, best=best, truncated=truncated, memory=memory)
        trainer.forget_best()
    state.wait_for_everyone()
    return run


def fit(trainer: RoutedTrainer, checkpoint: Any = None) -> None:
    """Train, and tell the run folder how it ended where it did not come to its end."""
    forget_untrained(trainer.model)
    try:
        trainer.fit(checkpoint)
    except (TrainingError, Interrupted) as error:
        if trainer.is_world_process_zero():
            with suppress(MhrError):  # where the disk is full, that is what has to be reported
                trainer.run.write(
                    status="failed" if isinstance(error, TrainingError) else "interrupted", error=str(error)
                )
        raise


def best_of(run: RunFolder, trainer: RoutedTrainer) -> dict[str, Any] | None:
    """The best validation of a run: its step, and the loss and score there; None where nothing was validated."""
    step = trainer.state.best_global_step
    if trainer.validation is None or step is None:
        return None
    found = run.validations()[step]
    kept = trainer.config.keep_best
    return {
        "step": step,
        "loss": found["loss"],
        "score": found["score"],
        "by": trainer.config.best_by or "loss",
        "kept": kept,
    }


def save_result(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: RunFolder, base: str, step: int | None = None
) -> None:
    """Write what was trained: the adapter, its average where the run ended in that, or the whole model where there is none.
    step: after which it is; None: after all steps of the settings."""
    config = run.config()
    info: dict[str, Any] = {"run": run.path.name, "step": config.train.steps if step is None else step}
    if config.ends_in_mu:
        assert config.adapter is not None
        checkpoint = checkpoint_of(model, base)
        info["average_of"] = config.adapter.to_dict()
        write_adapter(replace(plain_checkpoint(collapse(checkpoint, None)), info=info), run.adapter)
        return
    if hasattr(model, "mhr"):
        save_adapter(model, run.adapter, base=base, info=info)
        return
    with writing_folder(run.model) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """How many parameters are trained, and how many the model has."""
    parameters = list(model.parameters())
    return {
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "all": sum(p.numel() for p in parameters),
    }


def _open(config: RunConfig, output: str, state: PartialState, resume: bool, overwrite: bool) -> tuple[RunFolder, Any]:
    """The run folder, made by the main process, and the checkpoint to go on from."""
    state.wait_for_everyone()
    error = None
    if state.is_main_process:
        try:
            run = RunFolder.create(output, overwrite=overwrite, resume=resume)
            if run.info:
                _check_same(config, run, state.num_processes)
        except MhrError as refused:
            error = refused
    raise_together(error)
    if not state.is_main_process:
        run = RunFolder.open(output) if resume else RunFolder(output, {})
    if not run.info or run.status == "done":
        return run, None
    checkpoint, skipped = newest_complete(run.checkpoints)
    if state.is_main_process:
        run.forget_after(0 if checkpoint is None else step_of(checkpoint))
        run.write(skipped=skipped, resumed_from=None if checkpoint is None else checkpoint.name)
    return run, checkpoint


def _as_begun(config: RunConfig, output: str) -> RunConfig:
    """The settings with the head of the run that is resumed, where they leave it open: earlier releases always ranked."""
    ranked = config.head == "auto" and held_in(output) and RunFolder.open(output).config().head == RANK
    return replace(config, head=RANK) if ranked else config


def _check_same(config: RunConfig, run: RunFolder, n_processes: int) -> None:
    """Raise TrainingError where a run is resumed with settings that it was not started with. With another number of processes its
    global batch has to be the same, in whichever parts."""
    before, now = flat(to_dict(run.config())), flat(to_dict(config))
    free = FREE
    n_before = run.info["processes"]
    if n_processes != n_before:
        each, each_now = (s["train.batch_size"] * s["train.accumulation"] for s in (before, now))
        total = run.info.get("global_batch", each * n_before)
        if each_now * n_processes != total:
            raise TrainingError(
                f"run {run.path} has a global batch of {total} examples, and {n_processes} processes with batch_size x "
                f"accumulation = {each_now} make {each_now * n_processes}: set them so that the product of the three stays {total}"
            )
        free = FREE | {"train.batch_size", "train.accumulation"}
    for key in sorted(before.keys() | now.keys()):
        if key in free or key.partition(".")[0] in free or before.get(key) == now.get(key):
            continue
        raise TrainingError(
            f"run {run.path} was started with {key} = {before.get(key)!r}, not {now.get(key)!r}: resume it with its own "
            f"settings (--config {run.path / 'config.yaml'}) or choose another output folder"
        )
