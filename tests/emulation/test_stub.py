"""The host code that nvcc makes of the launchers, run under a CUDA runtime that only records: what an emulator of kernels cannot
see. Streams, devices, shared memory and its attribute, grids, the number of launches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.emulator import ROOT
from tests.emulation.stub.library import STREAM, Record, build_stub, missing_tools

pytestmark = [pytest.mark.emulation, pytest.mark.slow]

SHARED_OF_AN_SM = 227 * 1024  # of an H100's or H200's 228 KB, 1 KB of which every block takes for itself
MOST_SHARED = 99 * 1024  # of a block, on every GPU since sm_80
# The blocks that an SM should hold, by kernel: what their registers are bounded for.
BLOCKS = {"shrink_kernel": 3, "expand_kernel": 3, "outer_kernel": 2}
TILED = {"shrink_kernel", "expand_kernel"}
# The most launches of a call, without what ranks beyond one launch of expand add, and copies of factors whose rows are no whole
# number of 16 bytes.
LAUNCHES = {
    "mix": 3,  # of 40 banks each
    "mix_beside": 3,
    "mix_backward": 9,
    "mix_backward of shared weights": 7,
    "route": 1,
    "route_all": 1,
    "route_all_backward": 1,
    "route_backward": 1,
    "routed_adapter_forward": 3,
    "routed_adapter_backward_dy": 3,
    "routed_adapter_backward_x": 4,
    "routed_linear_forward": 4,
    "routed_linear_backward": 10,
    "routed_linear_forward of factors": 3,
    "routed_linear_backward of factors": 7,
    "routed_linears_forward": 4,  # of three layers: x is read once,
    "routed_linears_backward": 12,  # and once more, and dx is written once
    "routed_bottleneck_forward": 4,
    "routed_bottleneck_backward": 12,
    "weighted_average": 5,  # of 64 tensors each
    "weighted_average of one": 1,
}


def records_of(library: Path) -> list[dict[str, Any]]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.emulation.stub.record", str(library)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MHR_NATIVE": "0", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    for call in found:
        call["records"] = [Record(**{**r, "grid": tuple(r["grid"])}) for r in call["records"]]
    return found


def check_stream_and_device(calls: list[dict[str, Any]]) -> None:
    for call in calls:
        assert call["records"], f"{call['name']} {call['sizes']}: nothing started"
        for r in call["records"]:
            assert r.stream == STREAM, f"{call['name']}: {r.kind or 'a copy'} is not on torch's current stream"
            assert r.device == -1, (
                f"{call['name']}: {r.kind or 'a copy'} starts without its tensors' device as the current one"
            )


def check_shared_memory(calls: list[dict[str, Any]]) -> None:
    seen = set()
    for call in calls:
        for r in call["records"]:
            if r.kind not in BLOCKS:
                assert r.bytes == 0 or not r.kind, f"{call['name']}: {r.kind} takes shared memory: add it to BLOCKS"
                continue
            seen.add(r.kind)
            # Beyond these ranks what a block holds for good (act(z), the partial dz) takes the place of a second block.
            one = call["sizes"]["r"] > {"expand_kernel": 64, "outer_kernel": 32}.get(r.kind, call["sizes"]["r"])
            most = SHARED_OF_AN_SM // (1 if one else BLOCKS[r.kind]) - 1024
            assert r.bytes <= most, f"{call['name']} {call['sizes']}: {r.kind} takes {r.bytes} bytes of {most}"
            # The same whatever the first launch took: of two threads' first launches either may come last.
            assert r.raised == MOST_SHARED, f"{call['name']}: {r.kind} is allowed {r.raised} bytes, not {MOST_SHARED}"
            assert r.bytes <= r.raised
    assert seen == set(BLOCKS)


def check_grids(calls: list[dict[str, Any]]) -> None:
    seen = set()
    for call in calls:
        for r in call["records"]:
            z = call["sizes"]
            if r.kind == "outer_kernel":
                # Chunks have 64 tokens or more, but for the last of each row; those of runs may be a third more.
                most = z["n"] // 64 + min(z["g"], z["u"] + 2)
                assert 3 * r.grid[0] <= 4 * most, f"{call['name']} {z}: {r.grid[0]} chunks, at most {most} do"
            if r.kind not in TILED:
                continue
            # As short as runs are where rows come in any order.
            size = 16 if z["n"] * z["u"] <= 16 * z["g"] * (z["u"] - 1) else 64
            # Each segment may end in a tile that is not full; of equal ones it is known how many tiles each has.
            tiles = z["n"] // size + z["g"]
            if not z["ragged"]:
                tiles = min(tiles, z["g"] * -(-(z["n"] // z["g"]) // size))
            assert r.grid[0] == tiles, f"{call['name']} {z}: {r.kind} has {r.grid[0]} rows of blocks for {tiles} tiles"
            seen.add((r.kind, size))
    assert seen == {(kind, size) for kind in TILED for size in (16, 64)}


def check_launches(calls: list[dict[str, Any]]) -> None:
    assert {call["name"] for call in calls} == set(LAUNCHES)
    for call in calls:
        pads = sum(r.kind == "pad_kernel" for r in call["records"])
        most = 1 if call["name"].endswith("_x") else 4 if call["name"].startswith("routed_linears") else 2
        assert pads <= most, f"{call['name']} {call['sizes']}: {pads} copies"
        launches = len(call["records"]) - pads
        if call["sizes"] is not None and call["sizes"]["r"] > 64:
            launches -= max(0, sum(r.kind == "expand_kernel" for r in call["records"]) - 1)
        assert launches <= LAUNCHES[call["name"]], f"{call['name']} {call['sizes']}: {launches} launches"


CHECKS = (check_stream_and_device, check_shared_memory, check_grids, check_launches)


@pytest.fixture(scope="module")
def calls() -> list[dict[str, Any]]:
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    return records_of(build_stub())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_what_the_launchers_ask_of_the_runtime(check: Any, calls: list[dict[str, Any]]) -> None:
    check(calls)
