"""Layers whose weight the model's code computes with instead of calling them: an adapter beside such a layer would not act.

Fused kernels take it (Mamba's in training), and so does code that works on slices (Reformer), folds two layers into one
(MobileBERT's head) or rescales the weight in place (RWKV). Which layers these are is read off the source of the classes around a
layer, so that it holds for every architecture and version, and for code that is not of transformers.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache

from torch import nn

# What may be asked of a weight without computing with it.
FACTS = {"dtype", "device", "shape", "size", "dim", "ndim", "is_cuda", "requires_grad", "element_size", "numel"}

SETUP = ("init", "reset", "tie", "post_init", "load")
"""How the names of methods begin, leading underscores aside, that are no part of a call of the model."""

LIBRARIES = ("torch", "transformers", "mhr", "builtins", "abc")
"""Packages whose classes, those of `transformers.models` and torch's attention apart, read no layer of a model."""


def weight_is_read(model: nn.Module, name: str) -> bool:
    """Whether the code of a module around the layer `name` computes with the layer's weight itself."""
    parts = name.split(".")
    for i in range(len(parts)):
        around, inner = model.get_submodule(".".join(parts[:i])), ".".join(parts[i:])
        reads = (read for cls in type(around).__mro__ for read in _reads(cls.__module__, cls.__qualname__))
        if any(inner == path or (loose and inner.endswith(f".{path}")) for path, loose in reads):
            return not _unreached(around)
    return False


def _unreached(module: nn.Module) -> bool:
    """Whether the code that reads a weight is not run: DeBERTa's for queries apart, which it is never given, and Bloom's for slices,
    unless it is asked to sum in the order of its pretraining."""
    if type(module).__module__.endswith("modeling_deberta"):
        return True
    if not hasattr(module, "slow_but_exact"):
        return False
    return not (module.slow_but_exact and getattr(module, "pretraining_tp", 1) > 1)


@cache
def _reads(module: str, cls: str) -> frozenset[tuple[str, bool]]:
    """Paths of layers whose weight the methods that a class defines compute with; with False, from the module itself on, with True
    from any module inside it."""
    of_a_model = module.startswith(("transformers.models.", nn.MultiheadAttention.__module__))
    if not of_a_model and module.partition(".")[0] in LIBRARIES:
        return frozenset()
    return frozenset(_paths(_classes(module).get(cls)))


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes at the top of a module by name; none where its source is not at hand."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError, SyntaxError):
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _paths(definition: ast.ClassDef | None) -> Iterator[tuple[str, bool]]:
    """As `_reads`."""
    for method in definition.body if definition else ():
        if not isinstance(method, ast.FunctionDef) or method.name.lstrip("_").startswith(SETUP):
            continue
        nodes = list(ast.walk(method))
        asked = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr in FACTS}
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                asked.update(id(argument) for argument in node.args)
        names = {
            node.targets[0].id: ast.unparse(node.value)
            for node in nodes
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in asked:
                path = ast.unparse(node.value)
                root, _, rest = names.get(path, path).partition(".")
                if rest:
                    yield rest, root != "self"
