"""Routing methods: from the tasks of a batch to weights over heads and skills."""

from __future__ import annotations

from mhr.routing import (
    adamix,
    adapter_fusion,
    arrow,
    context_mhr,
    generative_adapter,
    hash,
    hydra,
    hyperformer,
    mtl_lora,
    pha,
    phatgoose,
    private,
    random,
    shared_heads,
    skill,
    uniform,
)
from mhr.routing.adapter_fusion import FusionRouter
from mhr.routing.batch import RoutingBatch, RoutingState
from mhr.routing.contexts import Contexts
from mhr.routing.parameters import ParameterGroup
from mhr.routing.router import Router, make_contexts, make_router, routers
from mhr.routing.task_contexts import TaskContexts
from mhr.routing.tokens import TokenRouter

__all__ = [
    "Contexts",
    "FusionRouter",
    "ParameterGroup",
    "Router",
    "RoutingBatch",
    "RoutingState",
    "TaskContexts",
    "TokenRouter",
    "make_contexts",
    "make_router",
    "routers",
]
