"""Fused ops on plain tensors, usable without any model of ours: routing, mixing, adapting, merging."""

from __future__ import annotations

from mhr.ops.mix import mix
from mhr.ops.native import build_info, native_ops
from mhr.ops.route import route
from mhr.ops.route_all import route_all
from mhr.ops.routed_adapter import routed_adapter
from mhr.ops.routed_bottleneck import routed_bottleneck
from mhr.ops.routed_linear import routed_linear
from mhr.ops.routed_linears import routed_linears
from mhr.ops.token_adapter import token_adapter, token_routed_adapter
from mhr.ops.weighted_average import weighted_average

__all__ = [
    "build_info",
    "mix",
    "native_ops",
    "route",
    "route_all",
    "routed_adapter",
    "routed_bottleneck",
    "routed_linear",
    "routed_linears",
    "token_adapter",
    "token_routed_adapter",
    "weighted_average",
]
