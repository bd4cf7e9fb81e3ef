"""Plants one bug at a time in the CUDA kernels and asks whether the emulator notices:  python -m tests.emulation.mutants

A bug that nothing notices is a hole in the cases or in the emulator, and fails the run. Run it after a change of the emulator or
of a kernel's skeleton, in parts if you like: --only shrink, --only outer, ...
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from pathlib import Path

import torch

from tests.emulation.adapter_cases import (
    CASES,
    GROUPS,
    LONG_SUMS,
    SPARSE,
    Case,
    Group,
    Problem,
    Siblings,
    assert_float32_accuracy,
    check,
    check_problem,
    with_wrong_offsets,
)
from tests.emulation.bounds import Bounded, product, worst
from tests.emulation.emulator import CSRC, FLAVOURS, ROOT, BuildFailed, build, build_changed, run
from tests.emulation.planted import MUTANTS, Mutant
from tests.emulation.test_mix import ITEMS, SUMS, backward_call, forward_call
from tests.emulation.test_route import calls as route_calls
from tests.emulation.test_route import compare as compare_route
from tests.emulation.test_sanitizers import RACE_CASES, RACE_GROUPS
from tests.emulation.test_weighted_average import call as average_call


def cost(case: Case) -> int:
    return (sum(case.lengths) + 16 * len(case.lengths)) * (case.n_in + case.n_out) * max(16, case.rank)


@functools.cache
def cases(flavour: str, dtype: torch.dtype) -> tuple[Case, ...]:
    """Those of one type, the cheapest first."""
    found = [c for c in (RACE_CASES if flavour == "race" else CASES) if c.dtype == dtype]
    return tuple(sorted(found, key=cost))


def groups(flavour: str, dtype: torch.dtype) -> list[Group]:
    return [g for g in (RACE_GROUPS if flavour == "race" else GROUPS) if g.case.dtype == dtype]


def examine_adapter(driver: Path, flavour: str, dtype: torch.dtype) -> None:
    for group in groups(flavour, dtype):
        siblings = Siblings(group)
        if flavour == "race":
            run(driver, siblings.calls(7))
        else:
            check_problem(driver, siblings, (7,) if flavour == "address" else (0, 7))
    for case in cases(flavour, dtype):
        if flavour == "race":
            run(driver, Problem(case).calls(7))
        else:
            check(driver, case, (7,) if flavour == "address" else (0, 7))
    if flavour == "plain" and dtype == torch.float32:
        for case in LONG_SUMS:
            problem = Problem(case)
            assert_float32_accuracy(problem, run(driver, problem.calls(7)))
    if flavour == "address":
        run(driver, with_wrong_offsets())
        check(driver, SPARSE, (7,))


def examine_mix(driver: Path) -> None:
    for shift in (0, 4):
        grads, mixed = run(driver, [backward_call(ITEMS, 7, shift=shift), forward_call(ITEMS, 7, shift)])
        for item, factor in zip(ITEMS, mixed, strict=True):
            bank, weights, grad = item.tensors()
            sums = product(Bounded.exact(weights.transpose(0, 1)), Bounded.exact(bank.flatten(2)), SUMS)
            assert worst(item.split(factor), sums.rounded(item.mixed_dtype)) <= 1, "mix"
            dots = product(Bounded.exact(item.split(grad)), Bounded.exact(bank.flatten(2)).mT, SUMS)
            assert worst(grads[2 * ITEMS.index(item) + 1].transpose(0, 1), dots) <= 1, "weights_grad"


def examine_average(driver: Path) -> None:
    for count, size in ((3, 61), (300, 40)):
        tensors = [torch.randn(size) for _ in range(count)]
        ((out,),) = run(driver, [average_call(tensors, [1.0] * count)])
        assert torch.allclose(out, torch.stack(tensors).sum(0), atol=1e-3), "weighted_average"


def examine(driver: Path, mutant: Mutant) -> None:
    """Raises where something is noticed."""
    if mutant.source == "mix.cu":
        examine_mix(driver)
    elif mutant.source == "route.cu":
        compare_route(run(driver, route_calls(7)))
    elif mutant.source == "weighted_average.cu":
        examine_average(driver)
    else:
        examine_adapter(driver, mutant.build, mutant.dtype)


own = functools.cache(build)  # the driver as it is


def try_mutant(mutant: Mutant, scratch: Path) -> str:
    """What noticed the bug; empty where nothing did."""
    path = scratch / "csrc" / "cuda" / mutant.file
    original = path.read_text()
    assert mutant.old in original, f"{mutant.name}: the text to change is not in {mutant.file}"
    path.write_text(original.replace(mutant.old, mutant.new, 1))
    try:
        driver = build_changed(
            own(mutant.build), mutant.build, scratch / "csrc" / "cuda" / mutant.source, scratch / mutant.build
        )
        examine(driver, mutant)
    except AssertionError as fault:
        lines = [line for line in str(fault).splitlines() if "ERROR:" in line or "WARNING:" in line]
        return (lines or str(fault).splitlines() or ["a value beyond its bound"])[0][:110]
    finally:
        path.write_text(original)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the mutants whose name contains this")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many")
    options = parser.parse_args()
    scratch = ROOT / "build" / "emulation" / "mutants"
    shutil.rmtree(scratch / "csrc", ignore_errors=True)
    shutil.copytree(CSRC, scratch / "csrc", ignore=shutil.ignore_patterns("cpu"))
    wanted = [
        m
        for m in sorted(MUTANTS, key=lambda m: list(FLAVOURS).index(m.build))[options.skip :]
        if options.only in m.name
    ]
    survivors = []
    for i, mutant in enumerate(wanted, 1):
        try:
            noticed = try_mutant(mutant, scratch)
        except BuildFailed:
            noticed = ""
            survivors.append(f"{mutant.name}: it does not build")
        else:
            survivors += [] if noticed else [mutant.name]
        where = f"{i}/{len(wanted)} {mutant.build}"
        print(f"{where:16s} {mutant.name:52s} {noticed or 'NOT NOTICED'}", flush=True)
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} noticed", *survivors, sep="\nnot noticed: ")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
