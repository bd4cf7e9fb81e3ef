"""A Linear with a recurrent adapter behind it, whose state goes from layer to layer: HRA (arXiv 2403.19709), its heads routed by any method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhr.config import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.routed import RoutedLayer, Segments
from mhr.layers.tied import bank_name
from mhr.ops import routed_adapter
from mhr.routing import Router, RoutingState


class RoutedRecurrent(RoutedLayer):
    """`y = x + h B_t` with `x = base(input)`, `h = relu(x A + u * h' + a)`, `B_t = concat_h sum_s w[t,h,s] B[h,s]`.

    h [B, ..., R] belongs to a token; h' is what the adapter before, in the same pass of an encoder or decoder, has made of that token, and 0
    for the first one. The controller A, u, a serves all tasks, and with the heads B all layers of an encoder or decoder that adapt O features
    (`mhr.layers.tied`). x, y [B, ..., O]; bank_a [1, 1, O, R], carry_a (u) and bias_a [1, 1, 1, R], bank_b [H, S, R, O/H].
    A ~ U(-b, b), b = 1 / sqrt(O); u ~ U(0, 1), as of an IndRNN (arXiv 1803.04831); a and B are 0.

    In plain torch, for rows of one task with weights w [H, S]:

        B = torch.einsum("hs,hsro->hro", w, bank_b).permute(1, 0, 2).flatten(1)      # [R, O]
        h = F.relu(x @ A + u * h + a)
        y = x + h @ B
    """

    bank_names = ("bank_a", "carry_a", "bias_a", "bank_b")
    head_dims = (2,)
    bank_a: nn.Parameter
    carry_a: nn.Parameter
    bias_a: nn.Parameter
    bank_b: nn.Parameter

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.check_heads(output=self.out_features)
        self.chain = bank_name(config, name, (self.in_features, self.out_features))
        self.reset()

    def fresh(self, name: str, n_skills: int) -> Tensor:
        rank, width = self.config.rank, self.out_features
        if name == "bank_b":
            heads = self.router.n_heads
            return torch.zeros(heads, n_skills, rank, width // heads, **self.place())
        values = torch.zeros(1, 1, width if name == "bank_a" else 1, rank, **self.place())
        if name == "bank_a":
            return values.uniform_(-(width**-0.5), width**-0.5)
        return values.uniform_() if name == "carry_a" else values

    def factors(self) -> dict[str, Tensor]:
        """The heads: of the controller nothing is mixed."""
        return {"bank_b": self.bank()["bank_b"]}

    def side_of(self, a: Tensor, b: Tensor) -> list[Tensor]:
        return [b]

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        weights, rows, rows_b, offsets = segments[:4]
        y = self.base_output(x)
        h = self.step(y)
        (heads,) = self.mixed(weights)  # [U, R, O]
        # A product with another matrix for each segment is what the up projection of an adapter is.
        through = torch.eye(self.config.rank, dtype=heads.dtype, device=heads.device)[None]
        at = rows if rows_b is None else rows_b
        return routed_adapter(y.clone(), h, through, heads, torch.zeros_like(rows), rows_b=at, offsets=offsets)

    def step(self, x: Tensor) -> Tensor:
        """The next state h [..., R] for x [..., O], which the next layer finds. Raises TargetError, naming the layer, where x has other tokens
        than the layer before."""
        bank = self.bank()
        a, u, bias = (bank[name].to(x.dtype).view(-1, self.config.rank) for name in ("bank_a", "carry_a", "bias_a"))
        carried: dict[str, Any] = self.state.carried
        before = carried.get(self.chain)
        if before is None:
            before = bias.new_zeros(bias.shape)  # so that u has a gradient in every model
        elif before.shape[:-1] != x.shape[:-1]:
            # Tokens that come as [B * L] in some layers (mixtures of experts) and as [B, L] in others are the same.
            if 2 not in (before.dim(), x.dim()) or before.shape[:-1].numel() != x.shape[:-1].numel():
                raise TargetError(
                    f"layer {self.name!r} got x {list(x.shape)}, and the recurrent adapter before it had {list(before.shape[:-1])} tokens: "
                    "expected the same tokens in all layers; leave the layer out of targets"
                )
            before = before.reshape(*x.shape[:-1], -1)
        h = F.relu(F.linear(x, a.T, bias[0]) + u * before.to(x))
        carried[self.chain] = h
        return h
