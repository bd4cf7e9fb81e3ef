"""Plants one bug at a time in the launchers and asks whether test_stub.py notices:  python -m tests.emulation.stub.mutants

They are those that the emulator cannot see. Takes some minutes.
"""

from __future__ import annotations

import shutil
import sys

from tests.emulation.emulator import ROOT
from tests.emulation.stub.library import build_stub, missing_tools
from tests.emulation.test_stub import CHECKS, records_of

# name, file, what is there, what is planted
MUTANTS = (
    ("forward on the default stream", "routed_linear_torch.cpp", "scratch.at<void>(parts), call.stream()", "scratch.at<void>(parts), nullptr"),
    ("mix on the default stream", "mix.cu", "dim3(unsigned(threads)), 0, stream, args", "dim3(unsigned(threads)), 0, nullptr, args"),
    ("a copy on the default stream", "weighted_average.cu", "p.tensors[0], bytes, st)", "p.tensors[0], bytes, nullptr)"),
    ("no device guard", "torch_device.h", "guard_(t.get_device_index())", "guard_(7)"),
    ("shrink: 100 KB too much shared memory", "routed_adapter.cuh", "S::kShared, stream", "S::kShared + 100 * 1024, stream"),
    ("more than 48 KB without asking", "device.cuh", "MaxDynamicSharedMemorySize, kMostShared", "MaxDynamicSharedMemorySize, 48 * 1024"),
    ("no more shared memory than a kernel's first launch takes", "device.cuh", "MaxDynamicSharedMemorySize, kMostShared", "MaxDynamicSharedMemorySize, bytes"),
    ("shrink: twice the blocks", "routed_adapter.cuh", "unsigned(max_tiles(segments_a, S::kTokens))", "unsigned(2 * max_tiles(segments_a, S::kTokens))"),
    ("one bank a launch", "mix.cu", "filled == kMixItems ||", "filled == 1 ||"),
)  # fmt: skip


def main() -> int:
    reason = missing_tools()
    if reason:
        sys.exit(reason)
    scratch = ROOT / "build" / "stub-mutants"
    shutil.copytree(ROOT / "csrc", scratch / "csrc", dirs_exist_ok=True)
    unnoticed = []
    for name, file, old, new in MUTANTS:
        path = scratch / "csrc" / "cuda" / file
        original = path.read_text()
        assert old in original, f"{name}: the text to change is not in {file}"
        path.write_text(original.replace(old, new, 1))
        try:
            calls = records_of(build_stub(scratch / "csrc", scratch / "build"))
            for check in CHECKS:
                check(calls)
            unnoticed.append(name)
            print(f"NOT NOTICED  {name}", flush=True)
        except AssertionError as fault:
            print(f"noticed      {name}: {str(fault).splitlines()[-1][:150]}", flush=True)
        finally:
            path.write_text(original)
    return len(unnoticed)


if __name__ == "__main__":
    sys.exit(main())
