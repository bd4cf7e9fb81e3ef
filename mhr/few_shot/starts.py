"""Where an adaptation begins: what each mode loads, what it trains, and how the model returns there for the next one."""

from __future__ import annotations

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.backbones import load_backbone
from mhr.checkpoint import load_adapter, read_adapter
from mhr.checks import check_choice
from mhr.errors import ConfigError
from mhr.layers import AdapterBank, attach
from mhr.merging import attach_plain, merge_uniform
from mhr.runs.methods import MODES
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig


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
        self.first = {name: tensor.detach().clone() for name, tensor in self._kept().items()}

    def begin(self, task: str, seed: int) -> None:
        """Return to the beginning; routing rows and fresh banks are drawn anew from `seed`."""
        set_seed(seed)
        if self.bank is None:
            self.model.requires_grad_(True)
        else:
            self.bank.set_tasks([task], fresh=True)
            if self.mode == "random":
                for layer in self.bank.layers.values():
                    layer.reset()
            for parameter in [*self.bank.adapter_parameters(), *self.bank.saved_parameters()]:
                parameter.requires_grad_(self.mode != "z")
        with torch.no_grad():
            for name, tensor in self._kept().items():
                tensor.copy_(self.first[name])

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
        """What every adaptation finds as it was: all weights, or the bank without its routing."""
        if self.bank is None:
            return self.model.state_dict()
        fresh = ("routers.", "layers.") if self.mode == "random" else ("routers.",)
        return {name: tensor for name, tensor in self.bank.tensors().items() if not name.startswith(fresh)}


def load_start(run: RunFolder, config: RunConfig, mode: str) -> Start:
    """The model that a mode begins from, on the result of a pretraining run.

    mhr, z, lora   base model and bank         mu       base model and the bank's uniform factor average, one plain LoRA
    full           base model, or the model    random   base model and a fresh bank with the run's settings
                   that the run trained whole

    The one adapter that AdaMix (adamix, adamix-lora) trains is the average of its skills: there `lora` is `mu`.

    Raises ConfigError for a mode that the run's method does not allow.
    """
    mode = check_mode(mode, config, str(run.path))
    result = run.result()
    base = str(result) if config.method == "full" else config.model
    set_seed(config.train.seed)  # an untrained classification head is drawn as in pretraining
    model, tokenizer = load_backbone(base, run.info["model_kind"])
    if mode == "random":
        assert config.adapter is not None
        attach(model, config.adapter, run.info["tasks"][:1])
    elif mode == "mu" or (mode == "lora" and config.adapter is not None and config.adapter.method == "adamix"):
        attach_plain(model, merge_uniform(read_adapter(result)))
    elif mode != "full":
        load_adapter(result, model)
    return Start(model, tokenizer, base, mode)


def check_mode(mode: str, config: RunConfig, run: str) -> str:
    """The mode, "mhr" for "poly". Raises ConfigError for an unknown one and one that a run with these settings does not allow."""
    mode = "mhr" if mode == "poly" else mode
    check_choice("mode", mode, MODES)
    method = config.method
    shared = config.train.ends_in_mu or (config.adapter is not None and config.adapter.method == "shared")
    reason = None
    if config.adapter is None:
        if mode != "full":
            reason = "it trained all weights and has no adapter: use mode 'full'"
    elif mode == "lora" and not shared and config.adapter.method != "adamix":
        reason = "its adapter is not shared by all tasks: use mode 'mu' for its average, or 'mhr'"
    elif config.train.ends_in_mu and mode in ("mhr", "z"):
        reason = "it ended as the average of its skills, so there is nothing to route: use mode 'lora' or 'mu'"
    elif mode == "z" and config.adapter.method not in ("mhr", "poly"):
        reason = "its routing is not learned, so there is no row to train"
    elif mode == "mhr" and method == "private":
        reason = "its tasks have adapters of their own and nothing for a new task: use mode 'mu' or 'random'"
    if reason:
        raise ConfigError(f"mode is {mode!r}, but run {run} has method {method!r}: {reason}")
    return mode
