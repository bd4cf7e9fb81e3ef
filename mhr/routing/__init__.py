"""Routing methods: from the tasks of a batch to weights over heads and skills."""

from mhr.routing import hash, private, random, skill, uniform  # noqa: F401  (registers the methods)
from mhr.routing.batch import RoutingBatch, RoutingState
from mhr.routing.router import Router, routers

__all__ = ["Router", "RoutingBatch", "RoutingState", "routers"]
