"""How many processes train together, and who says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mhr.training import processes

CODE = """
from mhr.training.processes import processes
from mhr.errors import ConfigError
try:
    print("processes", processes().num_processes)
except ConfigError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux" or processes.on_gpu(), reason="accelerate starts one process without a GPU")
@pytest.mark.parametrize(
    ("asked", "told"),
    [(["--num_processes", "2"], "was asked for 2 processes and started one"), (["--num-processes=1"], "processes 1")],
)
def test_accelerate_launch_starts_one_process_without_a_gpu_which_is_told(
    asked: list[str], told: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(CODE)
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *asked, "--cpu", str(script)],
        env=os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert told in result.stdout, result.stderr


def test_a_process_of_its_own_is_alone() -> None:
    assert processes._asked_of_accelerate() == 0
