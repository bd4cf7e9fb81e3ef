"""The frozen base model in shards over the processes: FSDP2, with the bank whole in each of them.

What is frozen in the transformer blocks is sharded by torch's `fully_shard`: a block is gathered where it is computed, forward
and backward, and has no gradient to reduce. What is trained (skills, routing, modules that are trained whole) stays whole in
every process, in its own dtype; DistributedDataParallel averages its gradients as without shards, and so optimizers and
checkpoints are those of an unsharded run, for any number of processes. Embeddings, head and what blocks share stay whole too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mhr.adapters import fingerprint
from mhr.errors import ConfigError
from mhr.layers.bank import bank_of
from mhr.runs.settings import RunConfig
from mhr.training.processes import FSDP, processes

UNSUPPORTED = {
    "FSDP_VERSION": ("1", "fsdp_version: 2"),
    "FSDP_OFFLOAD_PARAMS": ("true", "fsdp_offload_params: false"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("true", "fsdp_cpu_ram_efficient_loading: false"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "true",
        "fsdp_activation_checkpointing: false, and train.gradient_checkpointing true",
    ),
    "FSDP_AUTO_WRAP_POLICY": ("SIZE_BASED_WRAP", "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"),
}
"""What a config file of `accelerate launch` may ask of FSDP and does not get: the variable it becomes, its value, and what to
write there instead."""


def check_sharding(config: RunConfig) -> bool:
    """Whether the base model of a run is to be sharded, as `train.fsdp` or the config file of `accelerate launch` says.

    Raises ConfigError, before anything is loaded, for what cannot be sharded: a method that freezes nothing, a quantised base,
    one that a device map has placed, a model that is compiled, a single process; and for settings of Accelerate that are not supported.
    """
    launched = os.environ.get(FSDP, "false").lower() == "true"
    if not (config.train.fsdp or launched):
        return False
    if launched:
        for name, (value, instead) in UNSUPPORTED.items():
            if os.environ.get(name, "1" if name == "FSDP_VERSION" else "").lower() == value.lower():
                raise ConfigError(
                    f"accelerate launch sets {name}={value}, which is not supported: write {instead} in its config file"
                )
    if config.train.torch_compile:
        raise ConfigError("train.torch_compile does not go with a sharded base: leave one of them out")
    if config.adapter is None:
        raise ConfigError(
            f"fsdp shards what is frozen, and method {config.method!r} freezes nothing: train an adapter, or leave fsdp out"
        )
    for name in ("quantize", "device_map"):
        if getattr(config, name) not in (None, "no"):
            raise ConfigError(
                f"fsdp is given with {name} {getattr(config, name)!r}, whose weights cannot be sharded: leave fsdp out (each "
                f"process then holds the base whole), or {name}"
            )
    if processes().num_processes == 1:
        raise ConfigError(
            "fsdp shards the base over processes, and there is one: start several by torchrun, or set --no-fsdp"
        )
    return True


def shard_base(model: nn.Module, device: torch.device) -> None:
    """Shard the frozen parameters of the blocks of `model`, which has a bank, over all processes, and move all of it to `device`.

    Block by block, so that the whole base need not fit there. Raises ConfigError for a base that has no blocks or holds weights
    that are no floating-point numbers.
    """
    bank = bank_of(model)
    blocks = list(dict.fromkeys(blocks_of(model)))
    if not blocks:
        raise ConfigError(
            f"fsdp shards transformer blocks, and {type(model).__name__} has no list of them: leave fsdp out"
        )
    owners = Counter(id(p) for block in blocks for p in block.parameters())
    outside = {id(p) for part in _around(model) for p in part.parameters(recurse=False)}
    own = {*bank.parameters(), *bank.adapter_parameters()}
    whole = {p for p in model.parameters() if p.requires_grad or p in own or id(p) in outside or owners[id(p)] != 1}
    for name, parameter in model.named_parameters():
        if parameter not in whole and not parameter.is_floating_point():
            raise ConfigError(
                f"fsdp cannot shard parameter {name!r} of {parameter.dtype}: leave fsdp out, so that each process holds the "
                "quantised base whole"
            )
    # What the base is known by is read off its values, which no process has alone from here on.
    bank.base_fingerprint = fingerprint(model)
    mesh = init_device_mesh(device.type, (processes().num_processes,))
    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=again, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    assert isinstance(model, FSDPModule)
    for tensor in chain(model.parameters(), model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
    # The model is the root of its blocks also where a part of it (an encoder) is the first to be called.
    model._get_fsdp_state()._lazy_init()


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks of a model, with or without a bank: the items of its outermost lists of modules."""
    for child in module.children():
        if child is getattr(module, "mhr", None):
            continue
        if not isinstance(child, nn.ModuleList):
            yield from blocks_of(child)
            continue
        for item in child:
            if isinstance(item, nn.ModuleList):
                yield from blocks_of(item)
            else:
                yield item


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The sharded model with the gradients of what is whole in each process averaged over them."""
    sharded = [name for name, p in model.named_parameters(remove_duplicate=False) if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)
    return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])


@contextmanager
def without_accelerates_own() -> Iterator[None]:
    """Inside the block Accelerate does not see that it was launched with FSDP: it would shard, and save, the bank as well."""
    asked = os.environ.pop(FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[FSDP] = asked


def _around(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that are in no block."""
    yield module
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from _around(child)
