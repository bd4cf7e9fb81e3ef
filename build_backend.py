"""The build backend: setuptools', which gets a torch to compile against where the environment to install into has none.

The extension is compiled against the torch that it will run with. A build in isolation does not see that environment's
packages, but runs its interpreter, so `find_torch` asks that one; only where there is no torch does the build get one of its
own, of the version that is installed with mhr a moment later.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that stay as they are

LOCATE = "import importlib.util as u; found = u.find_spec('torch'); print(found.origin if found else '')"


class Torch(NamedTuple):
    """An installed torch: its folder, its version, and the version of CUDA it was built with, if any."""

    home: Path
    version: str
    cuda: str | None


def find_torch() -> Torch | None:
    """The torch of this build, or else that of the environment that it is for; None where neither has one."""
    spec = importlib.util.find_spec("torch")
    origin = spec.origin if spec else None
    if origin is None:
        hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")  # how pip keeps a build apart
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        asked = subprocess.run(
            [sys.executable, "-c", LOCATE], env=environment, capture_output=True, text=True, check=False
        )
        origin = asked.stdout.strip()
    if not origin:
        return None
    home = Path(origin).parent
    version = runpy.run_path(str(home / "version.py"))
    return Torch(home, version["__version__"], version.get("cuda"))


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_of_its_own()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_of_its_own()]


def _torch_of_its_own() -> list[str]:
    return [] if os.environ.get("MHR_NATIVE") == "0" or find_torch() else ["torch>=2.11"]
