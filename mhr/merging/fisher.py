"""Fisher merging (arXiv 2111.09832): an average in which each parameter weighs as much as its adapter depends on it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mhr.adapters.plain import PlainAdapter, plain_checkpoint
from mhr.adapters.tensor_file import TensorFile, TensorWriter
from mhr.data import Example
from mhr.errors import MergeError
from mhr.layers import AdapterBank
from mhr.merging.combination import Combination, combines
from mhr.merging.judge import Judge


@combines("fisher")
def combine_fisher(
    sources: Sequence[PlainAdapter], weights: list[float], *, judge: Judge, examples: int
) -> Combination:
    """`x = sum_k w_k F_k x_k / sum_k w_k F_k`, elementwise; where no input's F says anything, `sum_k w_k x_k`.

    F_k, of the norm 1 over the whole adapter, is the diagonal of input k's empirical Fisher information: the mean over
    `examples` examples of each of its tasks of the squared gradient of `log p(answer)`, the answer being the first target.
    It is taken with respect to the factors, those of a LoRA scaled such that alpha / R is 1.

    Raises MergeError for a Fisher information that is 0 everywhere, DataError where an input has no examples.
    """
    if len(sources) == 1:
        return Combination(weights)
    folder = tempfile.TemporaryDirectory(prefix="mhr-fisher-")
    files = []
    for number, source in enumerate(sources):
        fisher = diagonal_fisher(judge, source.read(), judge.examples_of(source, examples), source.name)
        with TensorWriter(Path(folder.name) / f"{number}.safetensors") as file:
            file.add_all(fisher)
        files.append(TensorFile(file.path))

    def merge(name: str, tensors: Sequence[Tensor], _folder: object = folder) -> Tensor:
        # `_folder` lives, and with it the files, for as long as this function does.
        average, top, bottom = (torch.zeros_like(tensors[0]) for _ in range(3))
        for file, tensor, weight in zip(files, tensors, weights, strict=True):
            average.add_(tensor, alpha=weight)
            if name in file.shapes:  # buffers of a module have no gradient
                fisher = file.read([name])[name].to(tensor.dtype)
                top.addcmul_(fisher, tensor, value=weight)
                bottom.add_(fisher, alpha=weight)
        return torch.where(bottom > 0, top / bottom, average)

    return Combination(weights, tensors=merge, module=merge, notes={"examples per task": examples})


def diagonal_fisher(
    judge: Judge, plain: PlainAdapter, examples: Sequence[Example], name: str = "the adapter"
) -> dict[str, Tensor]:
    """The diagonal Fisher information of an adapter by "layer.tensor" or "module.tensor", see `combine_fisher`."""
    layers = {name: layer.scaled(1.0) for name, layer in plain.layers.items()}
    plain = PlainAdapter(layers, plain.base, plain.modules, heads=plain.heads)
    with judge.wearing(plain_checkpoint(plain)) as loaded, torch.enable_grad():
        bank = loaded.bank
        assert bank is not None
        parameters = dict(_parameters(bank))
        squares = {key: torch.zeros_like(p) for key, p in parameters.items()}
        for example in examples:
            loss = judge.loss(loaded, example)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for key, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    squares[key].addcmul_(gradient, gradient)
    norm = sum(float(s.double().square().sum()) for s in squares.values()) ** 0.5
    if not 0 < norm < float("inf"):
        raise MergeError(
            f"the Fisher information of {name} is {'0 everywhere' if norm == 0 else 'not finite'} on {len(examples)} examples: "
            "give other or more examples, or merge by another method"
        )
    fisher = {key: (square / norm).cpu() for key, square in squares.items()}
    for layer, factors in plain.layers.items():
        for key, tensor in factors.tensors().items():
            fisher[f"{layer}.{key}"] = _like(fisher[f"{layer}.{key}"], tensor)
    return fisher


def _parameters(bank: AdapterBank) -> list[tuple[str, torch.nn.Parameter]]:
    """What is trained, by the names that a plain adapter has for it."""
    found = [
        (f"{name}.{'gate' if key == 'gate_a' else key.removeprefix('bank_')}", p)
        for name, layer in bank.layers.items()
        for key, p in layer.bank().items()
    ]
    return found + [(f"{name}.{key}", p) for name, m in bank.saved.items() for key, p in m.named_parameters()]


def _like(bank: Tensor, tensor: Tensor) -> Tensor:
    """[1, 1, P, Q] of a bank, filled up to a common rank, as the plain adapter's tensor that it was made of: a matrix, a row or a column."""
    unpadded = bank[0, 0] if tensor.dim() == 2 else bank[0, 0].flatten()
    return unpadded[tuple(slice(n) for n in tensor.shape)].contiguous()
