"""LoRA, bottleneck and prefix in one layer of a transformer, each scaled by a gate of its own: UniPELT (arXiv 2110.07577), routed by any
method whose skills have an average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.linear import features
from mhr.layers.prefix_attention import check_attention
from mhr.layers.routed import RoutedLayer, Segments
from mhr.layers.routed_bottleneck import INIT_STD
from mhr.layers.self_attention import gated_part, self_attention_beside, value_layer
from mhr.ops import routed_adapter
from mhr.routing import Router, RoutingState


class RoutedGated(RoutedLayer):
    """A layer with an adapter that is scaled by `G = sigmoid(x g_t + c_t)` in (0, 1), x [B, L, I] what the adapter reads.

    gate_a (g) [H, S, I/H, 1], its heads blocks of x's features; gate_bias (c) [H, S, 1, 1], of which a task's is the mean over heads.
    g ~ N(0, 0.02), c is 0. Where attention sees all tokens G is one number for each example, the mean over its tokens without padding
    [B, 1, 1]; where it is causal each token has its own [B, L, 1], since a mean would tell it of the tokens to come.

    In plain torch, for rows of one task with weights w [H, S], and real tokens where mask [B, L] is 1:

        g = torch.einsum("hs,hsix->hix", w, gate_a).flatten(0, 1)                     # [I, 1]
        c = torch.einsum("hs,hsxy->h", w, gate_bias).mean()
        G = torch.sigmoid(x @ g + c)
        G = G if causal else (G * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    """

    bank_names: tuple[str, ...] = ("gate_a", "gate_bias")
    head_dims: tuple[int, ...] = (1, 1)
    gate_a: nn.Parameter
    gate_bias: nn.Parameter

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.causal = True
        self.check_heads(input=self.reads, output=self.out_features)
        self.reset()

    @property
    def reads(self) -> int:
        """Features of what the adapter, and its gate, read."""
        return self.in_features

    def fit(self, model: nn.Module) -> None:
        name = self_attention_beside(model, self.name)
        attention: Any = model.get_submodule(name)
        check_attention(name, attention)
        # A decoder that brings a causal mask may say that its attention itself is not causal (BigBird-Pegasus).
        self.causal = bool(attention.is_causal or getattr(attention, "is_decoder", False))
        self._attention = (attention,)  # in a tuple, so that nn.Module does not register it

    @property
    def attention(self) -> nn.Module:
        """The self-attention of its block."""
        return self._attention[0]

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads = self.router.n_heads
        width = self.reads // heads if name == "gate_a" else 1
        values = torch.zeros(heads, n_skills, width, 1, **self.place())
        return values.normal_(0.0, INIT_STD) if name == "gate_a" else values

    def gate(self, x: Tensor, vectors: Tensor, biases: Tensor, segments: Segments) -> Tensor:
        """G [B, 1, 1] or [B, L, 1] for x [B, L, I], of a task's g [U, I, 1] and c [U, H, 1]. Raises TargetError, naming the layer, for
        tokens that are packed, and for those of which nothing says which are padding."""
        if segments.offsets is not None:
            raise TargetError(
                f"layer {self.name!r} got packed rows, in which gates have no example to look at: leave packing out"
            )
        rows = segments.rows
        tokens = x.reshape(rows.shape[0], -1, x.shape[-1])
        logits = tokens @ vectors[rows].to(x.dtype)
        each = torch.sigmoid(logits.to(biases.dtype) + biases.mean(1)[rows][:, None]).view(*x.shape[:-1], 1)
        if self.causal:
            return each.to(x.dtype)
        mask = self.state.current().mask
        if mask is None or mask.shape != x.shape[:2]:
            seen = "no tokens" if mask is None else f"tokens {list(mask.shape)}"
            raise TargetError(
                f"layer {self.name!r} got x {list(x.shape)}, and the call of its encoder {seen}: gates are means over the tokens of "
                "an example, so call the model, or its encoder, with all of them"
            )
        real = mask.to(each.dtype)[..., None]
        return ((each * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)


class RoutedGatedLora(RoutedGated):
    """`y = base(x) + G (x A_t) B_t`: a LoRA (`RoutedLinear`) whose gate has the place of alpha / R. bank_a [H, S, I/H, R] and bank_b
    [H, S, R, O/H]; A ~ U(-b, b), b = 1 / sqrt(I), B is 0."""

    bank_names = ("bank_a", "bank_b", *RoutedGated.bank_names)
    head_dims = (1, 2, *RoutedGated.head_dims)
    bank_a: nn.Parameter
    bank_b: nn.Parameter

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads, rank = self.router.n_heads, self.config.size_of("lora")
        if name == "bank_a":
            bound = self.in_features**-0.5
            a = torch.empty(heads, n_skills, self.in_features // heads, rank, **self.place())
            return a.uniform_(-bound, bound)
        if name == "bank_b":
            return torch.zeros(heads, n_skills, rank, self.out_features // heads, **self.place())
        return super().fresh(name, n_skills)

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        a, b, *gate = self.mixed(segments.weights)
        y = self.base_output(x)
        scaled = (x * self.gate(x, gate[0], gate[1], segments)).to(y.dtype)  # G (x A) B = ((G x) A) B
        return routed_adapter(y.clone(), scaled, a, b, segments.rows)


class RoutedGatedBottleneck(RoutedGated):
    """`y = h + G (gelu(h A_t + a_t) B_t + b_t)` with `h = base(x)`, which the gate reads: a `RoutedBottleneck`, R its width. bank_a
    [H, S, O/H, R], bank_b [H, S, R, O/H], bias_a [H, S, 1, R], bias_b [H, S, 1, O/H]. A, B ~ N(0, 0.02), biases 0."""

    bank_names = ("bank_a", "bias_a", "bank_b", "bias_b", *RoutedGated.bank_names)
    head_dims = (1, 1, 2, 2, *RoutedGated.head_dims)
    bank_a: nn.Parameter
    bias_a: nn.Parameter
    bank_b: nn.Parameter
    bias_b: nn.Parameter

    @property
    def reads(self) -> int:
        return self.out_features

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads, width = self.router.n_heads, self.config.size_of("bottleneck")
        features = self.out_features // heads
        sizes = {
            "bank_a": (features, width),
            "bank_b": (width, features),
            "bias_a": (1, width),
            "bias_b": (1, features),
        }
        if name not in sizes:
            return super().fresh(name, n_skills)
        values = torch.zeros(heads, n_skills, *sizes[name], **self.place())
        return values.normal_(0.0, INIT_STD) if name.startswith("bank") else values

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        a, bias_a, b, bias_b, *gate = self.mixed(segments.weights)
        h = self.base_output(x)
        update = routed_adapter(
            torch.zeros_like(h),
            h,
            a,
            b,
            segments.rows,
            bias_a=bias_a.mean(1),
            bias_b=bias_b.squeeze(1),
            activation="gelu",
        )
        return h + self.gate(h, gate[0], gate[1], segments) * update


class RoutedGatedPrefix(RoutedGated):
    """`base(x)`, the keys of a self-attention, and P = `AdapterConfig.virtual_tokens` keys and values that the attention sees in front of its
    own, each times G (`mhr.layers.prefix_attention`). bank_keys and bank_values [H, S, P, O/H] ~ N(0, 0.02), of a task [P, O], the
    attention's heads one behind the other."""

    bank_names = ("bank_keys", "bank_values", *RoutedGated.bank_names)
    head_dims = (2, 2, *RoutedGated.head_dims)
    bank_keys: nn.Parameter
    bank_values: nn.Parameter

    def fit(self, model: nn.Module) -> None:
        super().fit(model)
        values = features(value_layer(self.attention))[1]
        if values != self.out_features:
            raise TargetError(
                f"layer {self.name!r} has {self.out_features} features and the values beside it {values}, of which no prefix has keys and "
                "values: choose another kind of adapter"
            )

    def fresh(self, name: str, n_skills: int) -> Tensor:
        if name not in ("bank_keys", "bank_values"):
            return super().fresh(name, n_skills)
        heads = self.router.n_heads
        values = torch.empty(heads, n_skills, self.config.size_of("prefix"), self.out_features // heads, **self.place())
        return values.normal_(0.0, INIT_STD)

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        keys, values, *gate = self.mixed(segments.weights)
        y = self.base_output(x)
        scale = self.gate(x, gate[0], gate[1], segments)
        self.state.prefixes[self.name] = keys[segments.rows], values[segments.rows], scale
        return y


GATED_LAYERS: dict[str, type[RoutedGated]] = {
    "lora": RoutedGatedLora,
    "bottleneck": RoutedGatedBottleneck,
    "prefix": RoutedGatedPrefix,
}
"""Part of a gated adapter -> its layer."""


def routed_gated(name: str, base: nn.Module, *args: Any) -> RoutedGated:
    """The part of a gated adapter that stands at the layer `name`; other arguments as of a `RoutedLayer`."""
    return GATED_LAYERS[gated_part(name)](name, base, *args)
