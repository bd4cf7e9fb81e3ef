"""Names of a package that are imported on first use, so that `import mhr` and the command line's help stay quick."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def lazy(package: str, home: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package: a name is taken from its module in `home` (name -> module) when it is first asked for."""

    def get(name: str) -> object:
        if name in home:
            return getattr(importlib.import_module(home[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
