from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or config.pluginmanager.hasplugin("tests.emulation.as_cpu_ops"):
        return
    for item in items:
        if "tests/cuda/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here; the kernels run under the emulator instead"))
