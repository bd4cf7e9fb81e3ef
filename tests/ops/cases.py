"""Shapes that every op is tested on, and the plain formulas that are its truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What CUDA does not offer: float64, and complaints about values of rows, offsets and tasks, which only the CPU reads.
CPU_ONLY = ("float64", "rows must lie", "offsets must rise", "tasks must be below")
# What is asked of the CPU's kernels alone: their instruction sets, and GELU to the last bits, of infinities too.
CPU_ONLY_FILES = ("test_gelu.py", "test_native.py")


@dataclass(frozen=True)
class Layout:
    """Tokens in segments, each with its row of the factors."""

    name: str
    leading: tuple[int, ...]
    rows: tuple[int, ...]
    offsets: tuple[int, ...] | None = None

    @property
    def n_rows(self) -> int:
        return max(self.rows, default=0) + 2  # one row that no segment uses

    def row_of_token(self) -> Tensor:
        n = int(torch.tensor(self.leading).prod())
        if self.offsets is None:
            return torch.tensor(self.rows).repeat_interleave(n // max(len(self.rows), 1))
        lengths = torch.tensor(self.offsets).diff()
        return torch.tensor(self.rows, dtype=torch.int64).repeat_interleave(lengths)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        rows = torch.tensor(self.rows, dtype=torch.int64)
        return rows, None if self.offsets is None else torch.tensor(self.offsets)


LAYOUTS = (
    Layout("one", (1, 1), (0,)),
    Layout("equal", (3, 5), (2, 0, 2)),
    Layout("ragged", (2, 37), (1, 0, 1, 1, 3), (0, 33, 33, 40, 41, 74)),
    Layout("many", (70, 2), tuple(i % 7 for i in range(70))),
    Layout("empty", (0, 4), (0, 1)),
    Layout("none", (0,), (), (0,)),
)
# (I, O, R): one, odd, what no vector width divides, more than one panel of 64 columns.
SIZES = ((1, 1, 1), (8, 7, 3), (64, 128, 4), (65, 31, 16), (130, 192, 33), (192, 66, 5))


def values(*shape: int, dtype: torch.dtype, spread: float = 1.0) -> Tensor:
    """Random values that `dtype` holds exactly, so that the truth in float64 starts from the same numbers."""
    return (torch.randn(shape, dtype=torch.float64) * spread).to(dtype)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, two apart in memory."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def with_gradients(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: dict[str, Tensor],
    gradients: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """The outputs of a function and the gradients of its float inputs, by name: out, dx, dA ..."""
    leaves = {n: t.detach().clone().requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
    found = function(**leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    if gradients is None:
        torch.manual_seed(1)
        gradients = [torch.randn(o.shape, dtype=torch.float64).to(o.dtype) for o in outputs]
    torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(gradients, outputs, strict=True)])
    result = {f"out{i}": o.detach() for i, o in enumerate(outputs)}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad is not None, name
            assert leaf.grad.dtype == leaf.dtype, name
            result[f"d{name}"] = leaf.grad
    return result


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}


def mix_formula(bank: Tensor, weights: Tensor, head_dim: int) -> Tensor:
    """Written out by heads and skills, apart from the reference of the op."""
    heads = []
    for h in range(bank.shape[0]):
        total = torch.zeros(weights.shape[0], *bank.shape[2:], dtype=bank.dtype)
        for s in range(bank.shape[1]):
            total = total + weights[:, h, s, None, None].to(bank.dtype) * bank[h, s]
        heads.append(total)
    return torch.cat(heads, dim=head_dim)


def adapter_formula(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    token_a: Tensor,
    token_b: Tensor,
    scale: float,
    bias_a: Tensor | None = None,
    bias_b: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """One token at a time in a batched matmul."""
    flat = x.reshape(-1, x.shape[-1])
    h = torch.bmm(flat[:, None], A[token_a].to(x.dtype))[:, 0]
    if bias_a is not None:
        h = h + bias_a[token_a].to(x.dtype)
    if activation == "gelu":
        h = torch.nn.functional.gelu(h)
    delta = torch.bmm(h[:, None], B[token_b].to(x.dtype))[:, 0]
    if bias_b is not None:
        delta = delta + bias_b[token_b].to(x.dtype)
    return y + scale * delta.reshape(y.shape)
