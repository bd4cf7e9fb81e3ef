"""Merging reads layer by layer: what a merge adds to a process's memory does not grow with the inputs."""

from __future__ import annotations

from mhr_benchmarks.merge_memory import make_inputs, measure


def test_eight_adapters_take_far_less_memory_than_they_are_large(tmp_path):
    inputs = make_inputs(tmp_path, count=8, megabytes=32, width=1024, rank=16)
    found = measure(inputs, tmp_path / "out", "uniform", "factor")
    assert found["inputs"] > 250e6
    # At any time 8 layers of 128 KB; the rest is the allocator's generosity and libraries that load on first use.
    assert found["added"] < found["inputs"] / 4
