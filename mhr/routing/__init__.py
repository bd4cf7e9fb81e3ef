"""Routing methods: from the tasks of a batch to weights over heads and skills."""

from __future__ import annotations

from mhr.routing import adamix, hash, private, random, skill, uniform
from mhr.routing.batch import RoutingBatch, RoutingState
from mhr.routing.parameters import ParameterGroup
from mhr.routing.router import Router, routers

__all__ = ["ParameterGroup", "Router", "RoutingBatch", "RoutingState", "routers"]
