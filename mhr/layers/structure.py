"""Where the Linear layers of a transformer stand: in its attention, in its feed-forward blocks, or outside its blocks.

A transformer block is an element of an outermost ModuleList. What is in it is told by where it stands, not by the name of an
architecture: an attention module is the outermost one in a block that is called attention, by its own name or its class's, and its
projections read from d_model and return to it; the feed-forward part is what other modules of the block do between d_model and
d_model. d_model is the size that both read from and return to.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from mhr.layers.layouts import refusal_of
from mhr.layers.linear import features, is_linear

ATTENTION = re.compile(r"(?<!post_)(?<!pre_)(attn|attention)", re.IGNORECASE)
"""In the name of a module that is attention, or of a list of such modules."""

ATTENTION_CLASS = re.compile(r"(attention|attn)\d*$", re.IGNORECASE)
"""At the end of the name of a class of attention."""

MIXERS = re.compile(r"mamba|mixer|ssm|temporal|recurrent|(short_)?conv\d*", re.IGNORECASE)
"""Names of modules that mix the positions of a row and are no attention: a feed-forward block treats each alone."""

ROUTERS = re.compile(r"(.*_)?router|gate|shared_expert_gate|indexer")
"""Parts of the names of Linear layers that choose: experts, how much a shared one counts, positions to attend to."""

INTO_ATTENTION = re.compile(r"(.*_)?(q|k|v|z|kv|qkv|query|key|value|gate)(_\w+)?")
"""Last parts of the names of Linear layers that attention reads with, or that gate what it returns."""

PROJECTS_POSITIONS = re.compile(r"(rel(ative)?_)?pos(ition)?_\w+")
"""Last parts of the names of Linear layers that project positions, and not the features of a token."""

NO_LINEARS = re.compile("Grouped|Router")
"""In the names of classes that are made from Linear and compute something else."""

TOWERS = re.compile(r"(vision|visual|image|audio|speech|video)(_\w+)?")
"""Parts of the names of layers that read something other than text."""


@dataclass
class Structure:
    """Names of the Linear layers of a model's transformer blocks that can be adapted, each in the model's order.

    attention     those of attention modules
    mixers        those of what stands in their place (the mixers of Mamba's family)
    feed_forward  the others
    attended      of each attention module, the last one that returns to d_model
    outputs       of each block, the one of `feed_forward` that returns to d_model, from the most features
    experts       parameters [E, ..., ...] that hold the weights of E experts, which cannot be adapted
    left_out      other Linear layers of the blocks: name -> what it is or does, so that none of the above holds it
    """

    attention: list[str] = field(default_factory=list)
    mixers: list[str] = field(default_factory=list)
    feed_forward: list[str] = field(default_factory=list)
    attended: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    experts: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def linear(self) -> list[str]:
        """Every one that can be adapted."""
        return [*self.attention, *self.mixers, *self.feed_forward]


def structure_of(model: nn.Module, outside: Sequence[str] = ()) -> Structure:
    """The structure of a model, without the modules named in `outside` and what is in them. `attention` holds nothing of an
    encoder or decoder whose attention does not read from d_model and return to it, nor do `attended` and `outputs`."""
    found = Structure(experts=[name for name in _experts(model) if not is_within(name, outside)])
    embedded = tied_parameters(model)
    stacks: dict[str, list[_Place]] = defaultdict(list)  # by what the lists of blocks stand in: an encoder, a decoder
    for name, module in model.named_modules():
        block = block_parts(model, name) if is_linear(module) and not is_within(name, outside) else None
        if block is None:
            continue
        why = reason_against(model, name, embedded)
        if why is not None:
            found.left_out[name] = why
        path = name.split(".")
        place = _Place(name, ".".join(path[:block]), *_kind(model, path, block), *features(module))
        stacks[".".join(path[: block - 2])].append(place)
    for places in stacks.values():
        usable = [place for place in places if place.name not in found.left_out]
        width = _width(model, usable)
        for place in usable:
            if width is None and place.kind == "attention":
                found.left_out[place.name] = "is part of attention that does not return to the width of the model"
            else:
                getattr(found, place.kind).append(place.name)
        attended: dict[str, _Place] = {}
        outputs: dict[str, _Place] = {}
        for place in places:
            if place.outputs != width:
                continue
            if place.kind == "attention" and not INTO_ATTENTION.fullmatch(place.name.rpartition(".")[2]):
                attended[place.part] = place
            elif place.kind == "feed_forward" and place.inputs >= outputs.get(place.block, place).inputs:
                outputs[place.block] = place
        found.attended += [place.name for place in attended.values() if place.name not in found.left_out]
        found.outputs += [place.name for place in outputs.values() if place.name not in found.left_out]
    return found


def block_parts(model: nn.Module, layer: str) -> int | None:
    """How many parts of the name lead to the transformer block around it, an element of the outermost ModuleList; None where no
    list is around it."""
    parts = layer.split(".")
    for i in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList):
            return i + 1
    return None


class _Place(NamedTuple):
    """A Linear layer of a block: what it is part of, and its features. part: the attention module that it is in, or else the block."""

    name: str
    block: str
    kind: str
    part: str
    inputs: int
    outputs: int


def _kind(model: nn.Module, path: list[str], block: int) -> tuple[str, str]:
    """The list of `Structure` for the layer at the end of `path`, by the modules from the list of blocks down to it, and what it is
    part of."""
    whole = ".".join(path[:block])
    if ATTENTION.search(path[block - 2]):
        return "attention", whole
    for end in range(block + 1, len(path) + 1):
        part = ".".join(path[:end])
        if ATTENTION.search(path[end - 1]) or ATTENTION_CLASS.search(type(model.get_submodule(part)).__name__):
            return "attention", part
    return "mixers" if any(MIXERS.match(part) for part in path[block:]) else "feed_forward", whole


def tied_parameters(model: nn.Module) -> set[int]:
    """The parameters of the model's embeddings, by `id`."""
    return {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}


def reason_against(model: nn.Module, name: str, embedded: set[int]) -> str | None:
    """What a layer of a model is or does, so that it is adapted only by its name or not at all; None for others. embedded:
    `tied_parameters`."""
    parts = name.split(".")
    if any(TOWERS.fullmatch(part) for part in parts):
        return "reads no text"
    if any(ROUTERS.fullmatch(part) for part in parts):
        return "chooses experts or positions"
    if PROJECTS_POSITIONS.fullmatch(parts[-1]):
        return "projects positions"
    module = model.get_submodule(name)
    if NO_LINEARS.search(type(module).__name__):
        return f"is a {type(module).__name__}, which is no Linear in what it computes"
    if id(getattr(module, "weight", None)) in embedded:
        return "is tied to an embedding"
    return refusal_of(model, name)


def _width(model: nn.Module, places: Sequence[_Place]) -> int | None:
    """d_model: the size that attention reads from with one layer and returns to with another, and so does the rest of the blocks
    where that leaves any. Where several sizes are so, the one that the configuration calls the hidden size; None where none is."""
    sizes = _through([place for place in places if place.kind == "attention"])
    sizes = sizes & _through([place for place in places if place.kind == "feed_forward"]) or sizes
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = getattr(text, "hidden_size", None)
    if hidden in sizes:
        return int(hidden)
    return next(iter(sizes)) if len(sizes) == 1 else None


def _through(places: Sequence[_Place]) -> set[int]:
    return {a.inputs for a in places for b in places if a is not b and a.inputs == b.outputs}


def _experts(model: nn.Module) -> Iterator[str]:
    """Parameters with three axes of modules that are called experts."""
    for name, parameter in model.named_parameters():
        if parameter.dim() != 3:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(owner, _ConvNd) and re.search("expert", f"{name} {type(owner).__name__}", re.IGNORECASE):
            yield name


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether a module is one of those named, or in one of them."""
    return any(name == module or name.startswith(module + ".") for module in modules)
