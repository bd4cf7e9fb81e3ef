from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation import emulator


@pytest.fixture(scope="session")
def plain() -> Path:
    """The emulator's plain build."""
    reason = emulator.missing_tools()
    if reason:
        pytest.skip(reason)
    return emulator.build("plain")
