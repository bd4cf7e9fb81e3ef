"""One way to find an implementation by its name: routers, readers, samplers, merge methods and presets all use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from mhr.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names mapped to implementations of one kind.

    `what` is the noun that errors use ("router", "merge method"). Register with the decorator:

        routers: Registry[type[Router]] = Registry("router")

        @routers.register("uniform")
        class UniformRouter(Router): ...
    """

    def __init__(self, what: str):
        self.what = what
        self._items: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        def decorate(item: T) -> T:
            for name in names:
                if name in self._items:
                    raise ValueError(f"{self.what} {name!r} is registered twice")
                self._items[name] = item
            return item

        return decorate

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            raise ConfigError(f"unknown {self.what} {name!r}: {nearest(name, self._items)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
