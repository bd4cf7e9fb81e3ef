"""Layers that a model's code does not call are found in its source, whoever wrote it."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

import mhr
from mhr import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.layouts import routable
from tests.architectures import build


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.called, self.sliced, self.named = (nn.Linear(8, 8) for _ in range(3))
        nn.init.normal_(self.called.weight)

    def reset(self) -> None:
        self.called.weight.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.called.weight, Tensor)
        layer = self.named
        x = x.to(self.called.weight.dtype)
        return self.called(x) + F.linear(x, self.sliced.weight[:8]) @ layer.weight


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.rescaled = nn.ModuleList([nn.ModuleDict({"out": nn.Linear(8, 8)})])
        self.head, self.free = Inner(), Inner()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.rescaled:
            block.out.weight.div_(2)
        return x @ self.head.called.weight


def test_what_is_computed_with_a_weight_is_told_from_what_is_asked_of_it() -> None:
    model = Outer()
    read = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not routable(model, n)]
    inner = [f"{name}.{child}" for name in ("blocks.0", "blocks.1") for child in ("sliced", "named")]
    own = [f"{name}.{child}" for name in ("head", "free") for child in ("sliced", "named")]
    assert set(read) == {*inner, *own, "rescaled.0.out", "head.called"}
    with pytest.raises(
        TargetError, match=r"^layer 'blocks.0.sliced' is not always called: .*use targets such as called$"
    ):
        mhr.attach(model, AdapterConfig(targets=["sliced"]), ["a", "b"])


@pytest.mark.parametrize(
    ("kind", "model_type", "read"),
    [
        ("causal", "mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("causal", "mamba2", {"out_proj"}),
        ("causal", "bamba", {"mamba.out_proj"}),
        ("causal", "jamba", {"dt_proj"}),
        ("causal", "rwkv", {"attention.output", "feed_forward.value"}),
        ("causal", "bloom", set()),
        ("seq2seq", "t5", set()),
        ("classifier", "reformer", {"self_attention.query_key", "self_attention.value"}),
    ],
)
def test_of_transformers(kind: str, model_type: str, read: set[str]) -> None:
    model = build(kind, model_type)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "expert" not in n]
    left_out = [name for name in names if not routable(model, name)]
    assert {end for end in read if any(name.endswith(f".{end}") for name in left_out)} == read
    assert all(name.endswith(tuple(read)) for name in left_out)


def test_slices_of_bloom_are_asked_for() -> None:
    model = build("causal", "bloom")
    for block in model.transformer.h:
        block.self_attention.slow_but_exact, block.self_attention.pretraining_tp = True, 2
    assert not routable(model, "transformer.h.0.self_attention.dense")
