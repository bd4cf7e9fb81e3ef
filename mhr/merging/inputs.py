"""Whether adapters can be merged with one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mhr.adapters.base import BaseModel, same_base
from mhr.adapters.heads import joined_heads, stand_apart, without_outputs
from mhr.adapters.layer import ADAPTER_LAYERS, Sizes
from mhr.adapters.peft_modules import check_opens
from mhr.adapters.plain import PlainAdapter
from mhr.backbones import BUILTIN
from mhr.errors import MergeError


def check_sources(sources: Sequence[PlainAdapter], space: str, base: str | None = None) -> None:
    """Raise MergeError, naming what differs, where sources cannot be merged with one another.

    base: a base model that the user vouches for, so that names of base models may differ. Raises CheckpointError for an adapter of
    PEFT's that brings one half of tied weights, beside one of ours, whose modules stand for both halves.
    """
    one = sources[0]
    own = next((source.base for source in sources if not source.base.foreign), None)
    if own is not None:
        for source in sources:
            check_opens(source, own)
    try:
        joined_heads([source.heads for source in sources])
    except ValueError as fault:
        raise MergeError(f"the heads of the inputs cannot be merged: {fault}") from None
    apart = one.heads.layer if one.heads is not None and stand_apart([source.heads for source in sources]) else ""
    for other in sources[1:]:
        if one.kind != other.kind:
            raise MergeError(
                f"{one.name} is {ADAPTER_LAYERS[one.kind].title}, {other.name} is {ADAPTER_LAYERS[other.kind].title}: expected adapters of one kind"
            )
        if next(iter(one.shapes.values())).norm != next(iter(other.shapes.values())).norm:
            raise MergeError(
                f"of {one.name} and {other.name} one has bottlenecks with a layer norm and the other without: expected adapters of one kind"
            )
        _check_base(one, other, base)
        for name, difference in (
            (other.name, one.shapes.keys() - other.shapes.keys()),
            (one.name, other.shapes.keys() - one.shapes.keys()),
        ):
            if difference:
                there = one.name if name == other.name else other.name
                raise MergeError(
                    f"{name} does not adapt layer {min(difference)!r}, as {there} does ({len(difference)} layers in all): expected "
                    "adapters of the same layers"
                )
        for layer in one.shapes:
            _check_layer(layer, one, other, space)
        if without_outputs(one.states, apart) != without_outputs(other.states, apart):
            raise MergeError(
                f"{one.name} stores {_told(one)}, {other.name} {_told(other)}: expected the same modules of the same shapes"
            )


def _check_base(one: PlainAdapter, other: PlainAdapter, base: str | None) -> None:
    a, b = one.base, other.base
    if a.fingerprint and b.fingerprint:
        differ = not same_base(a.fingerprint, b.fingerprint)
    else:
        differ = (
            base is None and bool(a.name_or_path and b.name_or_path) and (_place(a) != _place(b) or _at_others(a, b))
        )
    if a.model_type and b.model_type and a.model_type != b.model_type:
        differ = True
    if differ:
        fix = "" if a.fingerprint and b.fingerprint else ", or name the one model that both mean with --model"
        raise MergeError(
            f"{one.name} belongs to base model {_named(a)}, {other.name} to {_named(b)}"
            f"{', and their weights differ, or were rounded to two 16-bit dtypes' if _named(a) == _named(b) else ''}: expected adapters of one model{fix}"
        )


def _at_others(one: BaseModel, other: BaseModel) -> bool:
    """Whether two are of other revisions, as far as that is known: PEFT records it, and our adapters outside their runs may not."""
    known = one.foreign and other.foreign or bool(one.revision and other.revision)
    return known and one.revision != other.revision


def _named(base: BaseModel) -> str:
    return repr(base.name_or_path) + (f" at revision {base.revision!r}" if base.revision else "")


def _place(base: BaseModel) -> str:
    """Where a base model is: a folder by its full path, a hub id as it is."""
    name = str(BUILTIN.get(base.name_or_path, base.name_or_path))
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _check_layer(layer: str, one: PlainAdapter, other: PlainAdapter, space: str) -> None:
    a, b = one.shapes[layer], other.shapes[layer]
    for what, x, y in (
        ("sizes", a.sizes, b.sizes),
        ("dtype", a.dtype, b.dtype),
        ("rank", a.rank, b.rank) if space == "factor" else ("", 0, 0),
    ):
        if x != y and not (what == "sizes" and _fit(a.sizes, b.sizes)):
            fix = "expected the same"
            if what == "rank":
                fix += ", or --space delta, which merges products of any rank" if one.kind == "lora" else ""
            elif what == "dtype":
                fix += ": store them in one with mhr merge INPUT --dtype NAME first"
            raise MergeError(f"layer {layer!r} has {what} {x} in {one.name} and {y} in {other.name}: {fix}")


def _fit(one: Sizes, other: Sizes) -> bool:
    """Whether sizes are the same as far as both tell them."""
    return one[1] == other[1] and None in (one[0], other[0])


def _told(source: PlainAdapter) -> str:
    shapes = [f"{name}.{key} {shape}" for name, state in source.states.items() for key, shape in state.items()]
    return (
        ", ".join(shapes[:2]) + (f" and {len(shapes) - 2} more tensors" if len(shapes) > 2 else "")
        if shapes
        else "no modules"
    )
