"""Each PTX wrapper on this GPU against its emulation, bit for bit: run this first on a new kind of GPU.

The emulated tests cannot show a fragment layout that a wrapper and its emulation misread alike; this one does.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import torch

from tests.emulation.emulator import LANGUAGE, ROOT

SOURCE = ROOT / "tests" / "cuda" / "conformance.cu"
BLOCKS = 64


def test_wrappers_agree_with_their_emulation(tmp_path: Path) -> None:
    emulation = [str(ROOT / "csrc" / "emulation" / name) for name in ("fiber.cpp", "mma.cpp", "runtime.cpp")]
    emulated, native = tmp_path / "emulated", tmp_path / "native"
    include = f"-I{ROOT / 'csrc'}"
    gxx = ["g++", *LANGUAGE.split(), "-O1", "-Wno-unknown-pragmas", include, "-x", "c++", str(SOURCE), *emulation]
    subprocess.run([*gxx, "-o", str(emulated)], check=True)
    major, minor = torch.cuda.get_device_capability()
    subprocess.run(
        ["nvcc", "-std=c++17", f"-arch=sm_{major}{minor}", include, str(SOURCE), "-o", str(native)], check=True
    )
    given = tmp_path / "input"
    given.write_bytes(random.Random(0).randbytes(BLOCKS * 512 * 4))
    outputs = []
    for program in (emulated, native):
        out = tmp_path / f"{program.name}.out"
        subprocess.run([str(program), str(given), str(out)], check=True)
        outputs.append(torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.int32).reshape(BLOCKS, 64, 32))
    wrong = (outputs[0] != outputs[1]).any(dim=2).any(dim=0).nonzero().flatten().tolist()
    assert not wrong, f"rows of conformance_kernel's record that differ: {wrong}"
