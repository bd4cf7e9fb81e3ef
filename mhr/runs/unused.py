"""Settings that were asked for and would change nothing: each is refused, with the reason and the way on.

Three declarations decide, each beside what it is about: `Setting.only` (with which other settings it has an effect),
`RoutingMethod.idle` (what a method has no use for) and `Reader.uses` (what a reader heeds). Only what a user has said is
judged: presets, and files of earlier runs, carry every setting.
"""

from __future__ import annotations

from collections.abc import Mapping

from mhr.data.load import find_reader
from mhr.data.reading import readers
from mhr.methods import METHODS, ROUTING_METHODS
from mhr.runs.config import Said, all_settings
from mhr.runs.settings import AS_AVERAGE, RunConfig


def refuse_unused(said: Mapping[str, Said], *configs: RunConfig) -> None:
    """Raise ConfigError for a setting of `said`, by its full name, that has no effect on a run with the settings `configs`, or on any of
    several."""
    for key, one in said.items():
        whys = [_why(key, config) for config in configs]
        if all(whys):
            raise one.error(f"{key} has no effect {whys[0]}")


def _why(key: str, config: RunConfig) -> str:
    return (
        _by_average(key, config)
        or _by_reader(key, config.tasks)
        or _by_method(key, config.method)
        or _by_contexts(key, config)
        or _by_grid(key, config)
        or _by_others(key, config)
    )


def _by_reader(key: str, tasks: str) -> str:
    section, _, name = key.rpartition(".")
    users = [reader for reader in readers.values() if name in reader.uses]
    if section != "data" or not users or name in readers[find_reader(tasks)].uses:
        return ""
    return f"on {tasks}: it is for {' or '.join(reader.layout for reader in users)}; leave it out"


def _by_average(key: str, config: RunConfig) -> str:
    if config.continue_as == AS_AVERAGE and key in (
        "train.router_lr",
        "train.router_weight_decay",
        "train.lazy_rows",
    ):
        return "on one adapter for all tasks: leave it out"
    return ""


def _by_contexts(key: str, config: RunConfig) -> str:
    of_contexts = key in ("train.router_lr", "train.lazy_rows")
    if not of_contexts or config.adapter is None or not config.adapter.routing.contexts:
        return ""
    context = config.adapter.own_settings().context
    if context == "learnt":
        return ""
    if key == "train.lazy_rows":
        return f"on contexts that are no parameters of the run (adapter.router.context {context}): leave it out"
    return f"on contexts that are no parameters of the run (adapter.router.context {context}): set adapter.router.network_lr instead"


def _by_grid(key: str, config: RunConfig) -> str:
    section, _, name = key.rpartition(".")
    if section != "adapt" or name not in config.adapt.grid:
        return ""
    return f"beside adapt.grid, which has {name} {config.adapt.grid[name]}: leave it out, or set a grid without it, such as adapt.grid={{}}"


def _by_method(key: str, method: str) -> str:
    section, _, name = key.rpartition(".")
    if section not in ("adapter", "train", "adapt") or name not in _idle(method):
        return ""
    with_it = [other for other, row in METHODS.items() if section != "adapter" or row.routing]
    fitting = [other for other in with_it if name not in _idle(other)]
    return f"with method {method!r}: leave it out, or use method {', '.join(fitting[:-1])} or {fitting[-1]}"


def _idle(method: str) -> tuple[str, ...]:
    routing = METHODS[method].routing
    return ("router_lr", "router_weight_decay", "lazy_rows") if routing is None else ROUTING_METHODS[routing].idle


def _by_others(key: str, config: RunConfig) -> str:
    section = key.partition(".")[0]
    for other, values in all_settings()[key][1].only.items():
        home, _, name = (other if "." in other else f"{section}.{other}").partition(".")
        found = getattr(getattr(config, home), name)
        if found not in values:
            return f"with {home}.{name} {found}: leave it out, or set {home}.{name} to {' or '.join(values)}"
    return ""
