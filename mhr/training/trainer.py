"""The Hugging Face Trainer, taught about tasks: two learning rates, losses over the global batch, and safe checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mhr.adapters import check_base, check_reopens, read_adapter, save_adapter
from mhr.data.collators import Collator
from mhr.data.samplers import ExampleDataset, TaskSampler, WholeRun
from mhr.data.truncation import Truncation
from mhr.errors import CheckpointError, DivergedError, MhrError, TrainingError
from mhr.files import read_json, write_json_atomically, writing
from mhr.layers import AdapterBank
from mhr.layers.parameter_groups import parameter_groups
from mhr.objectives import Objective, PassLosses
from mhr.objectives.consistency import consistency_weight, example_divergences
from mhr.runs.checkpoints import MARK, all_checkpoints, keep_newest, mark_complete
from mhr.runs.run import RunFolder
from mhr.training.arguments import trainer_arguments
from mhr.training.averaging import share_of_average
from mhr.training.feeding import COUNTS, CountedBatches, Feed
from mhr.training.lazy_rows import LazyRows
from mhr.training.log_window import LogWindow
from mhr.training.optimizers import keep_wide_states
from mhr.training.processes import over_processes, processes, raise_together
from mhr.training.sharding import data_parallel, shard_base, without_accelerates_own
from mhr.training.signals import Interrupted, StopRequest
from mhr.training.validation import STATE, BestWeights, ValidationResult, Validator, stalled

TRUNCATION_FILE = "truncation.json"
"""Of a checkpoint: what all processes had truncated until then."""


class RoutedTrainer(Trainer):
    """Trains what asks for a gradient in `model`, which may carry a bank, as the objective says; `fit` runs it.

    model       with a bank (mhr.attach), or without one: then all its weights train
    tokenizer   stored beside a model that is trained whole
    objective   what is minimised, with the settings of training
    examples, sampler, collator    what is drawn, in which order, and how it becomes a batch
    feed        how the examples come to it: their tokens, grouping by length, data-loader workers
    run         where metrics go, and checkpoints if `resumable`
    sharded     whether the frozen weights are sharded over the processes (mhr.training.sharding)
    base        name of the base model, for the adapter checkpoints
    callbacks   called by the Trainer; `on_log` gets the record that the run's metrics get, `on_evaluate` the metrics of Trainer
    validation  looked at every `eval_every` steps and at the end; None: never

    The loss of an optimizer step is the sum over all processes and accumulated passes, divided by the number of target tokens
    (examples for encoders) in all of them: how a global batch is split changes nothing. Skills that are drawn (AdaMix) are
    drawn once for the whole optimizer step, and a second time for a second pass where consistency has a weight. A loss that the bank has of
    its own (`AdapterBank.own_loss`) is added to it.
    """

    optimizer: Any
    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        examples: ExampleDataset,
        sampler: TaskSampler,
        collator: Collator,
        run: RunFolder,
        base: str,
        *,
        feed: Feed | None = None,
        resumable: bool = True,
        sharded: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
        validation: Validator | None = None,
    ):
        self.config = config = objective.train
        self.run = run
        self.base = base
        self.tokenizer = tokenizer
        self.examples = examples
        self.objective = objective
        self.bank: AdapterBank | None = getattr(model, "mhr", None)
        self.consistency = consistency_weight(objective, self.bank)
        self.stop = StopRequest()
        self.resumable = resumable
        self.validation = validation
        self.validated: ValidationResult | None = None
        self._best = BestWeights(run.path / "best", run.checkpoints)
        self.sharded = sharded
        per_step = config.batch_size * config.accumulation * processes().num_processes
        self.feed = feed or Feed()
        self.truncation = Truncation()
        """What was truncated of the texts that this process has trained on; with a checkpoint, the first one's of all before."""
        self._sampler = WholeRun(sampler, config.steps * per_step, self.feed.groups)
        self._stop_agreed = False
        self.rows: LazyRows | None = None
        """What holds the rows of tasks, while they are trained lazily."""
        self._window = LogWindow()
        self._use_cache = getattr(model.config, "use_cache", None)  # the Trainer turns it off
        with without_accelerates_own(), _as_adapted(model):
            super().__init__(
                model=model,
                args=trainer_arguments(
                    config,
                    run,
                    resumable,
                    self.bank is None,
                    validated=validation is not None,
                    workers=self.feed.workers,
                ),
                data_collator=CountedBatches(collator),
                train_dataset=examples if self.feed.rows is None else self.feed.rows,
                eval_dataset=None if validation is None else validation.examples,
                callbacks=[*callbacks, _StopAndLog(self)],
            )
        self.remove_callback(PrinterCallback)
        # Several visible GPUs in one process would mean nn.DataParallel, which scatters tensors but not task names.
        self.args._n_gpu = min(1, self.args.n_gpu)
        # Says that compute_loss divides by the number of items in the whole batch.
        self.model_accepts_loss_kwargs = True

    def fit(self, resume_from: Path | None = None) -> None:
        """Train to the end, from the checkpoint `resume_from` if one is given; with `keep_best`, the best step's weights are then put
        back.

        Raises TrainingError where a loss is not finite, and Interrupted, after a checkpoint, on Ctrl-C.
        """
        if self.bank is not None:
            check_reopens(self.model)
        self._checkpoint_blocks(True)
        if self.config.torch_compile:
            self.model.compile()
        self._note_consistency()
        # Each process draws its own dropout and routing noise.
        torch.manual_seed(self.config.seed + self.args.process_index)
        try:
            with self.stop, self.feed.forking(), self._lazy(), _as_before(self.model):
                if not self._ended_early(resume_from):
                    self.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        finally:
            self.model.config.use_cache = self._use_cache
            self._checkpoint_blocks(False)
            self.model._compiled_call_impl = None
        if self.stopping and not self.stalled and self.state.global_step < self.config.steps:
            saved = f"the checkpoint is in {self.run.checkpoints}; " if self.resumable else ""
            raise Interrupted(
                f"stopped after step {self.state.global_step} of {self.config.steps}; {saved}"
                "the same command with --resume goes on"
            )
        if self.keeps_best:
            self._load_from_checkpoint(str(self._best.of(self.result_step)))
        self.model.eval()

    @property
    def stalled(self) -> bool:
        """Whether validations that were no better end training before its last step."""
        return self.validation is not None and stalled(self.config, self.state)

    @property
    def keeps_best(self) -> bool:
        return self.validation is not None and self.config.keep_best

    @property
    def result_step(self) -> int:
        """The step whose weights are the result."""
        best = self.state.best_global_step if self.keeps_best else None
        return self.state.global_step if best is None else best

    def _ended_early(self, resume_from: Path | None) -> bool:
        """Whether the run that wrote this checkpoint ended its training there; its weights and state are then taken."""
        if resume_from is None or self.validation is None:
            return False
        state = TrainerState.load_from_json(str(resume_from / STATE))
        if not stalled(self.config, state):
            return False
        self._load_from_checkpoint(str(resume_from))
        self.state = state
        return True

    def _note_consistency(self) -> None:
        """Tell the run what consistency weighs, and for which tasks it compares single logits."""
        if self.consistency and self.is_world_process_zero():
            examples = [self.examples[i] for i in range(len(self.examples))]
            alone = sorted({example.task for example in examples if self.objective.compares_outputs(example)})
            self.run.write(consistency={"weight": self.consistency, "squared_difference": alone})

    @contextmanager
    def _lazy(self) -> Iterator[None]:
        """Inside the block rows of tasks are trained lazily, where the settings say so."""
        if self.bank is None or not self.config.lazy_rows or not self.bank.row_parameters():
            yield
            return
        per_step = self.config.batch_size * self.config.accumulation * self.args.world_size
        self.rows = LazyRows(self.bank, per_step)
        for table in self.rows.tables:
            broadcast(table.whole)  # as all else that is trained begins with what the first process has
        try:
            yield
        finally:
            self.rows.close()
            self.rows = None

    def _whole(self) -> AbstractContextManager[None]:
        """A context in which the bank has the rows of all tasks."""
        return nullcontext() if self.rows is None else self.rows.whole()

    def _checkpoint_blocks(self, on: bool) -> None:
        if self.config.gradient_checkpointing:
            verb = "enable" if on else "disable"
            new, old = f"activation_checkpointing_{verb}", f"gradient_checkpointing_{verb}"  # renamed in transformers 5
            getattr(self.model, new if hasattr(self.model, new) else old)()

    # ---- data and loss -------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._sampler

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        """Target tokens or examples of the whole optimizer step; on the way, what was truncated is counted, and the processes
        agree whether to stop after it."""
        for batch in batch_samples:
            self.truncation.add(batch.pop(COUNTS))
        if self.rows is not None:
            self.rows.load(self._drawn_rows(batch_samples, self.rows.size, device))
        local = sum(self.objective.count(batch) for batch in batch_samples)
        if self.args.world_size == 1:
            return torch.as_tensor(local, device=device)
        both = torch.stack([torch.as_tensor(local, device=device), torch.tensor(int(self.stop.asked), device=device)])
        items, asked = self.accelerator.reduce(both, reduction="sum")
        self._stop_agreed = bool(asked)
        return items

    def _drawn_rows(self, batches: list[dict[str, Any]], most: int, device: torch.device) -> list[int]:
        """The rows of the tasks that these batches, of one optimizer step, draw in all processes."""
        assert self.bank is not None
        rows = sorted({self.bank.row(task) for batch in batches for task in batch["task_ids"]})
        if self.args.world_size == 1:
            return rows
        padded = torch.tensor(rows + [-1] * (most - len(rows)), device=device)
        return [row for row in self.accelerator.gather(padded).tolist() if row >= 0]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        losses = self._pass(model, inputs, 0)
        total, divergence = losses.sums.sum(), None
        if self.consistency:
            divergence = example_divergences(losses, self._pass(model, inputs, 1)).sum()
            total = total + self.consistency * divergence
        self._window.add(losses, divergence)
        # The gradients of the processes are averaged, so each one's share counts as many times as there are processes.
        loss = total / num_items_in_batch * self.accelerator.num_processes
        own = None if self.bank is None else self.bank.own_loss(self.config.seed, self.state.global_step)
        return loss if own is None else loss + own / self.args.gradient_accumulation_steps

    def _pass(self, model: torch.nn.Module, inputs: dict[str, Any], number: int) -> PassLosses:
        """The losses of pass `number` over a batch; where skills are drawn, all batches and processes draw the same."""
        if self.bank is not None:
            self.bank.seed_draws(self.config.seed, self.state.global_step, number)
            self.bank.toward_average = share_of_average(self.config, self.state.global_step)
        # A loss may call a part of the model by itself, where Accelerate does not set the precision.
        with self.accelerator.autocast():
            return self.objective(model, inputs, self.config.label_smoothing, compared=bool(self.consistency))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, in a batch with {_listed(self._window.spoiled())}: "
                f"lower the learning rate or use precision 'no'; {self._last_checkpoint()}"
            )
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers' estimate for a batch; it would count the parameters of all modules again at every step."""
        return 6 * inputs[self.model.main_input_name].numel() * self._parameters

    @cached_property
    def _parameters(self) -> int:
        return int(self.model.num_parameters(exclude_embeddings=True))

    def _last_checkpoint(self) -> str:
        folder = next((p for p in all_checkpoints(self.run.checkpoints) if (p / MARK).is_file()), None)
        return "there is no checkpoint yet" if folder is None else f"the last checkpoint is {folder}"

    @property
    def stopping(self) -> bool:
        """Whether this optimizer step is the last one, because a signal asked for it; the same in every process."""
        return self.stop.asked if self.args.world_size == 1 else self._stop_agreed

    # ---- devices -------------------------------------------------------------------------------------------------

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        if self.sharded:
            shard_base(model, device)
        else:
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: torch.nn.Module, training: bool = True, dataloader: Any = None) -> torch.nn.Module:
        if self.sharded and training and model is self.model:
            return data_parallel(model, self.args.device)
        return super()._wrap_model(model, training, dataloader)

    # ---- optimizer -----------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer over `mhr.layers.parameter_groups`."""
        if self.optimizer is None:
            groups = parameter_groups(
                self.model,
                lr=self.config.lr,
                router_lr=self.config.router_lr,
                weight_decay=self.config.weight_decay,
                router_weight_decay=self.config.router_weight_decay,
                decaying=set(self.get_decay_parameter_names(self.model)),
            )
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if "scale_parameter" in settings:
                settings["scale_parameter"] = self.config.scale_parameter
            self.optimizer = optimizer([group.to_optimizer() for group in groups], **settings)
            keep_wide_states(self.optimizer, self.model)
        if self.rows is not None:
            self.rows.follow(self.optimizer)
        return self.optimizer

    # ---- log -----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell the run and the callbacks; the Trainer's summary at the end is left out, it holds nothing new."""
        if "loss" not in logs:
            return
        # The rate of this optimizer step; the scheduler has moved on since.
        factor = logs["learning_rate"] / self.optimizer.param_groups[0]["initial_lr"]
        routed = self.bank is not None and bool(self.bank.router_parameters())
        record = {
            "step": self.state.global_step,
            "loss": logs["loss"],
            "lr": self.config.lr * factor,
            "router_lr": self.config.router_lr * factor if routed else None,
            "grad_norm": logs.get("grad_norm"),
            "consistency": self._window.divergence(self.accelerator),
            "tasks": self._window.task_losses(self.accelerator),
        }
        self._window.clear()
        if self.is_world_process_zero():
            self.run.log(record)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, record)

    # ---- validation ----------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, and tell the run and the callbacks. Raises DivergedError for a loss that is not finite."""
        assert self.validation is not None
        if self.bank is not None:
            self.bank.toward_average = share_of_average(self.config, self.state.global_step)
        with self._whole():
            self.validated = found = self.validation(self)
        spoiled = [task for task, loss in found.losses.items() if not math.isfinite(loss)]
        if spoiled:
            raise DivergedError(
                f"the validation loss of {_listed(spoiled)} is not finite after step {self.state.global_step}: lower the learning "
                f"rate or use precision 'no'; {self._last_checkpoint()}"
            )
        if self.is_world_process_zero():
            self.run.log(found.record())
        metrics = found.metrics()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Trainer's own, which keeps step and value of the best in its state; the weights are kept, and training may end."""
        better = super()._determine_best_metric(metrics, trial)
        if better and self.keeps_best:
            folder = self._best.of(self.state.global_step)
            with writing(folder):
                self.save_model(str(folder), _internal_call=True)
                if self.args.should_save:
                    self._best.forget(self.state.best_global_step)
            self.accelerator.wait_for_everyone()
        if self.stalled and self.state.global_step < self.state.max_steps:
            self.control.should_training_stop = True
            self.control.should_save = self.resumable
        return better

    def forget_best(self) -> None:
        """Delete the weights of best steps, once the result is written."""
        shutil.rmtree(self._best.folder, ignore_errors=True)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = self.run.checkpoints / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        failed = None
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
        except MhrError as error:
            # What there is of it goes, so that what was written before stays, and there is room to say how the run ended.
            shutil.rmtree(folder, ignore_errors=True)
            failed = TrainingError(f"{error}; {self._last_checkpoint()}")
        # Every process writes the state of its random generators.
        raise_together(failed)
        truncated = over_processes(self.truncation)
        if self.args.should_save:
            with writing(folder):
                write_json_atomically(folder / TRUNCATION_FILE, truncated.to_json())
                mark_complete(folder)
                keep_newest(self.run.checkpoints, self.config.keep_checkpoints, self.state.global_step)
                self._best.forget(self.state.best_global_step)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.run.path)
        if self.bank is None:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        else:
            with self._whole():
                save_adapter(self.model, folder, base=self.base, info={"step": self.state.global_step})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        counts = Path(resume_from_checkpoint) / TRUNCATION_FILE
        if self.is_world_process_zero() and counts.is_file():  # an earlier release wrote none
            self.truncation.add(Truncation.from_json(read_json(counts)))
        if self.bank is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        checkpoint = read_adapter(resume_from_checkpoint)
        stored = checkpoint.tensors
        with self._whole():
            ours = self.bank.tensors()
            for name, tensor in ours.items():
                found = None if name not in stored else list(stored[name].shape)
                if found != list(tensor.shape):
                    has = "lacks it" if found is None else f"has the shape {found}"
                    raise CheckpointError(
                        f"{resume_from_checkpoint} {has} for {name!r}, and the run has {list(tensor.shape)}: it is of another run, or damaged"
                    )
            check_base(self.model, checkpoint.base, checkpoint.layers, checkpoint.modules, checkpoint.name)
            for name, tensor in ours.items():
                tensor.copy_(stored[name])


@contextmanager
def _as_adapted(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, a model with a bank passes for one with adapters of PEFT, which is how the Trainer tells a quantised model that
    can be trained from one that cannot. Nothing else may see it: transformers would save and load such a model as PEFT does."""
    if not hasattr(model, "mhr"):
        yield
        return
    vars(model)["_hf_peft_config_loaded"] = True
    try:
        yield
    finally:
        del vars(model)["_hf_peft_config_loaded"]


class _StopAndLog(TrainerCallback):
    """Ends training where a stop was asked for, with a checkpoint; and lets every checkpoint begin a new log window. It is called last, since
    the end of a training is logged whoever asks for it."""

    def __init__(self, trainer: RoutedTrainer):
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.trainer.stopping and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = self.trainer.resumable
        # A resumed run restarts its averages, so the run it continues has to do the same to log the same numbers.
        ends = control.should_training_stop or state.global_step >= state.max_steps
        control.should_log = control.should_log or control.should_save or ends
        return control


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(repr(n) for n in shown[:5]) + (f" and {len(shown) - 5} more tasks" if len(shown) > 5 else "")


@contextmanager
def _as_before(model: PreTrainedModel) -> Iterator[None]:
    """What Accelerate puts on a model inside the block is taken off it after: its forward would go on under autocast, one more layer of it
    for each training."""
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    before = {name: vars(model)[name] for name in names if name in vars(model)}
    try:
        yield
    finally:
        for name in names:
            vars(model).pop(name, None)
        vars(model).update(before)
