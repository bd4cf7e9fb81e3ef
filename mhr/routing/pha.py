"""PHA (arXiv 2310.11670): adapters generated from prototypes of tasks, which the examples of a new task find."""

from __future__ import annotations

from mhr.routing.hyperformer import HyperRouter
from mhr.routing.prototypes import Prototypes
from mhr.routing.router import routers


@routers.register("pha")
class PhaRouter(HyperRouter):
    """`w[u, 0, s] = e[u, s]` as of `HyperRouter`, the tasks' vectors being `Prototypes`."""

    network = Prototypes
