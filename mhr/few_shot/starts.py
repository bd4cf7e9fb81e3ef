"""Where an adaptation begins: what each mode loads, what it trains, and how the model returns there for the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters import attach_plain, collapse, context_state, load_adapter, read_adapter
from mhr.backbones import check_precision_of, fill_heads, heads_of, load_backbone, set_heads
from mhr.checks import check_choice
from mhr.config import AdapterConfig
from mhr.errors import ConfigError
from mhr.layers import AdapterBank, attach
from mhr.loading import Loading
from mhr.methods import AVERAGE, BACKBONE, BANK, FRESH, METHODS, MODE_ALIASES, MODES, ONE, refusal
from mhr.objectives.fit import check_fit
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig
from mhr.task_heads import RANK, TaskHeads
from mhr.training.masters import train_whole


class Start:
    """A model on which one adaptation after the other begins from the same weights.

    The base model is loaded once and its frozen weights stay as they are; what trains is copied back by `begin`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: str, mode: str):
        self.model = model
        self.tokenizer = tokenizer
        self.base = base
        self.mode = mode
        self.bank: AdapterBank | None = getattr(model, "mhr", None)
        self.heads = heads_of(model)
        self.first = {name: tensor.detach().clone() for name, tensor in self._kept().items()}
        # The rows of the tasks that the run was trained on, before `begin` puts others in their place.
        self.tasks = [] if self.bank is None else self.bank.tasks
        rows = {} if self.bank is None else self.bank.rows_of_tasks()
        self.rows = {name: tensor.detach().clone() for name, tensor in rows.items()}
        self.neighbours: dict[Any, Any] = {}
        """What `mhr.few_shot.rows` finds out of these tasks once, by what it depends on beside them."""

    def begin(self, task: str, seed: int, heads: TaskHeads | None = None, context: Tensor | None = None) -> None:
        """Return to the beginning; routing rows, fresh banks and the task's head are drawn again from `seed`.

        context  the embedding [C] of the task, where its routing is computed from one, which then stands for its row
        heads  that of the task; None where the model generates or ranks. Where the run has one that answers the task (its own, or a
               shared one of the same classes), it begins with that one's values. It trains in every mode.

        What a router shares between tasks is kept like the skills: it trains with them, and the next task finds it as it was.
        """
        set_seed(seed)
        if self.bank is None:
            self.model.requires_grad_(True)
        else:
            self.bank.set_tasks([task], fresh=True)
            if MODES[self.mode].begins == FRESH:
                for layer in self.bank.layers.values():
                    layer.reset()
                for router in self.bank.groups.values():
                    router.reset()
                if self.bank.contexts is not None:
                    self.bank.contexts.reset()
            trained = MODES[self.mode].trains_skills
            own = set(self.bank.task_skills().values()) if MODES[self.mode].trains_head else set()
            shared = self.bank.shared_router_parameters()
            for parameter in (*self.bank.adapter_parameters(), *self.bank.saved_parameters(), *shared):
                parameter.requires_grad_(trained or parameter in own)
            if self.bank.contexts is not None:
                self.bank.contexts.vectors.requires_grad_(MODES[self.mode].trains_routing)
        outputs = self._set_heads(task, heads)
        with torch.no_grad():
            for name, tensor in self._kept().items():
                if name.removeprefix("modules.").rpartition(".")[0] != outputs:
                    tensor.copy_(self.first[name])
        if context is not None:
            assert self.bank is not None
            self.bank.set_contexts({task: context})

    @torch.no_grad()
    def put_row(self, row: Mapping[str, Tensor]) -> None:
        """Begin with these rows of routing: names of `AdapterBank.rows_of_tasks` -> the row of the task."""
        assert self.bank is not None
        for name, tensor in self.bank.rows_of_tasks().items():
            tensor[0] = row[name]

    def _set_heads(self, task: str, heads: TaskHeads | None) -> str | None:
        """Give the model the heads; returns the name of their layer, None where the model has none."""
        if heads is None:
            return None
        heads = set_heads(self.model, heads)
        assert heads is not None
        for parameter in self.model.get_submodule(heads.layer).parameters():
            parameter.requires_grad_(True)
        if self.heads is not None:
            prefix = f"modules.{heads.layer}." if self.bank is not None else f"{heads.layer}."
            held = {key.removeprefix(prefix): t for key, t in self.first.items() if key.startswith(prefix)}
            fill_heads(self.model, heads, self.heads, held)
        return heads.layer

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of everything that an adaptation may change, in the memory of the host."""
        tensors = self.model.state_dict() if self.bank is None else self.bank.tensors()
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Return to what the model held at a snapshot of the same task."""
        tensors = self.model.state_dict() if self.bank is None else self.bank.tensors()
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])

    def _kept(self) -> dict[str, Tensor]:
        """What every adaptation finds as it was: all weights, or what `begin` does not draw of the bank."""
        if self.bank is None:
            return self.model.state_dict()
        fresh = MODES[self.mode].begins == FRESH
        drawn = {*self.bank.rows_of_tasks(), *self.bank.task_skills(), *(self.bank.shared_routing() if fresh else ())}
        tensors = {name: tensor for name, tensor in self.bank.tensors().items() if name not in drawn}
        return {name: tensor for name, tensor in tensors.items() if not (fresh and name.startswith("layers."))}


def load_start(run: RunFolder, config: RunConfig, mode: str) -> Start:
    """The model that a mode begins from, on the result of a pretraining run.

    `Mode.begins`: the base model and the bank; its skills' uniform factor average, one plain adapter; the one adapter that the
    run trained, which is that average where skills are drawn (AdaMix); a fresh bank with the run's settings; or the base
    model alone, trained by the run if that trained it whole.

    Raises ConfigError for a mode that the run's method does not allow.
    """
    mode = check_mode(mode, config, str(run.path))
    result = run.result()
    base = str(result) if METHODS[config.method].routing is None else config.model
    set_seed(config.train.seed)  # an untrained classification head is drawn as in pretraining
    kind = run.info["model_kind"]
    model, tokenizer = load_backbone(base, kind, Loading.of(config))
    check_precision_of(model, config.train.precision)
    check_fit(model, tokenizer, kind)
    begins = MODES[mode].begins
    if MODES[mode].searches:
        _check_loras(run, kind)
    if begins == ONE:
        begins = AVERAGE if config.adapter is not None and config.adapter.routing.drawn else BANK
    if begins == FRESH:
        assert config.adapter is not None
        _attach_fresh(model, config.adapter, run)
    elif begins == AVERAGE:
        attach_plain(model, collapse(read_adapter(result), None))
    elif begins != BACKBONE:
        load_adapter(result, model)
    if begins == BACKBONE:
        train_whole(model)
    return Start(model, tokenizer, base, mode)


def _check_loras(run: RunFolder, kind: str) -> None:
    """Raise ConfigError for a run whose adapters cannot be weighed: no LoRAs, or of a model with heads, which are trained by gradients."""
    adapter = run.config().adapter
    if adapter is not None and adapter.adapter != "lora":
        raise ConfigError(
            f"run {run.path} has adapters of kind {adapter.adapter!r}, and what is weighed are LoRAs: use mode 'mu'"
        )
    if kind == "encoder":
        raise ConfigError(
            f"run {run.path} is of an encoder, whose head for a new task is trained by gradients: use mode 'mu', or 'z' of a method that has it"
        )


def _attach_fresh(model: PreTrainedModel, adapter: AdapterConfig, run: RunFolder) -> None:
    """A fresh bank with the settings of a run. Contexts are measured from the mean of the run's training tasks."""
    stored = read_adapter(run.result()) if adapter.routing.contexts else None
    if stored is not None:
        if not stored.config.routing.contexts:
            raise ConfigError(
                f"run {run.path} ended as the average of its skills and keeps no contexts, from which a fresh bank would route: use mode "
                "'mu'"
            )
        adapter = dataclasses.replace(adapter, router=stored.config.router)
    bank = attach(model, adapter, run.info["tasks"][:1])
    if stored is not None and bank.contexts is not None:
        bank.contexts.measured_as(context_state(stored))


def head_of_run(run: RunFolder, config: RunConfig) -> str:
    """What the setting `head` asks for tasks that a run is adapted to: a run that ranks pairs goes on with that."""
    if run.info["model_kind"] != "encoder":
        return "auto"
    return RANK if run.info.get("head", RANK) == RANK else config.head


def check_mode(mode: str, config: RunConfig, run: str) -> str:
    """The mode, by its first name where it has several. Raises ConfigError for an unknown one and one that a run with these
    settings does not allow."""
    mode = MODE_ALIASES.get(mode, mode)
    check_choice("mode", mode, tuple(MODES))
    reason = refusal(mode, config.trained_as, averaged=config.ends_in_mu)
    if reason:
        raise ConfigError(f"mode is {mode!r}, but run {run} has method {config.method!r}: {reason}")
    return mode
