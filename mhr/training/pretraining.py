"""Pretraining: one bank of adapters (or all weights) on many tasks at once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from mhr.backbones import forget_untrained
from mhr.errors import ConfigError, MhrError
from mhr.locks import one_writer
from mhr.methods import PRIVATE
from mhr.runs.checkpoints import newest_complete, step_of
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig, paths_read, with_chat_template
from mhr.training.continuing import run_continued
from mhr.training.optimizers import check_optimizer
from mhr.training.peak import peak_memory
from mhr.training.preparing import prepare
from mhr.training.processes import check_precision, over_processes, processes
from mhr.training.reporting import reporting
from mhr.training.results import best_of, save_result
from mhr.training.resuming import as_begun, open_run
from mhr.training.sharding import check_sharding
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from mhr.training.validation import MakeScorer
from mhr.training.watch import ProgressBar, TensorBoard


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
    reads = paths_read(config)
    config = with_chat_template(as_begun(config, output) if resume else config)
    if config.adapter is not None and config.adapter.routing.by_token:
        raise ConfigError(
            f"method {config.method!r} trains no bank: it chooses among LoRAs that are finished, such as those of a run of method "
            f"{PRIVATE!r}; mhr route RUN --method {config.method}"
        )
    state = processes()
    sharded = check_sharding(config)
    check_precision(config.train.precision)
    check_optimizer(config.train.optimizer)
    reporters = reporting(config.train.report_to)
    source = run_continued(config)
    RunFolder.check(output, overwrite=overwrite, resume=resume, reads=reads)
    begins = not (resume and newest_complete(RunFolder(output, {}).checkpoints)[0])
    ready = prepare(config, state, source, seeded=begins, progress=progress, scorer=scorer)
    config = ready.config
    run, checkpoint = open_run(config, output, state, resume, overwrite, ready.facts)
    if run.status == "done":
        return run
    if state.is_main_process:
        run.start(config, **ready.facts, sharded=sharded)
    with ProgressBar(config.train.steps, f"pretrain {config.method}", progress and state.is_main_process) as bar:
        bar.skip(0 if checkpoint is None else step_of(checkpoint))
        for line in run.info.get("skipped", ()):
            bar.note(f"{line}; going on from {run.info['resumed_from'] or 'the beginning'}")
        trainer = RoutedTrainer(
            ready.model, ready.tokenizer, ready.objective, ready.examples, ready.sampler, ready.collator, run, config.model,
            feed=ready.feed, sharded=sharded, validation=ready.validation,
            callbacks=[bar, TensorBoard(run.logs), *reporters],
        )  # fmt: skip
        fit(trainer, checkpoint)
    truncated, memory = over_processes(trainer.truncation).describe(), peak_memory()
    if state.is_main_process:
        save_result(ready.model, ready.tokenizer, run, config.model, trainer.result_step)
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
    except (MhrError, Interrupted) as error:
        if trainer.is_world_process_zero():
            with suppress(MhrError):  # where the disk is full, that is what has to be reported
                trainer.run.write(status="failed" if isinstance(error, MhrError) else "interrupted", error=str(error))
        raise
