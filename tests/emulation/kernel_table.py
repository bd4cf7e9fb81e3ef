"""The tables of docs/kernels.md, from what the compiler made of the kernels:  python -m tests.emulation.kernel_table

Needs nvcc and cuobjdump (MHR_CUOBJDUMP names it), compiles for sm_90, and rewrites the tables and instruction_budget.json, whose
numbers may only fall: one that rose is an error, unless --raise says that it is meant. Times are arithmetic, not measurements.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.emulation import nvcc, sass
from tests.emulation.emulator import LANGUAGE, ROOT

ARCH, SOURCE = "sm_90", "routed_adapter_bf16"
DOCS = ROOT / "docs" / "kernels.md"
BUDGET = Path(__file__).parent / "instruction_budget.json"
BEGIN, END = "<!-- made by python -m tests.emulation.kernel_table -->\n", "<!-- end -->\n"
# An SM of sm_90: registers, bytes of shared memory of which each block also takes 1 KB, threads.
SM_REGISTERS, SM_SHARED, SM_THREADS = 65536, 228 * 1024, 2048
# An H200: bytes a second of a copy, the share of it that 128-byte strips reach, SMs, instructions an SM issues each second
# at 70% of its slots, seconds that a kernel takes whatever it does.
COPY, STRIPS, SMS, ISSUE, FIXED = 4.3e12, 0.88, 132, 4 * 0.7 * 1.75e9, 2.2e-6
SHAPES = ((2048, 1024, 16), (2048, 4096, 16), (8192, 1024, 4), (8192, 4096, 4), (8192, 4096, 16), (8192, 4096, 64))
SHAPES += ((8192, 8192, 16), (32768, 4096, 16), (32768, 8192, 64))
# Of each kernel: its name in the library, and what its launcher calls it.
KERNELS = (
    ("shrink", "shrink bf16 {} 64", "shrink"),
    ("expand, adds to y", "expand bf16 {} 64 0 1 0", "expand"),
    ("expand, adds, biases", "expand bf16 {} 64 0 1 1", "expand"),
    ("expand, writes y", "expand bf16 {} 64 0 0 1", "expand"),
    ("expand of dX", "expand bf16 {} 64 1 1 0", "expand_transposed"),
    ("outer of dY", "outer bf16 {} 1 0", "outer_dy"),
    ("outer of x", "outer bf16 {} 0 0", "outer_x"),
    ("shrink, short", "shrink bf16 {} 16", "shrink_short"),
    ("expand, short, adds", "expand bf16 {} 16 0 1 1", "expand_short"),
    ("expand, short, writes", "expand bf16 {} 16 0 0 1", "expand_short"),
    ("expand of dX, short", "expand bf16 {} 16 1 1 0", "expand_transposed_short"),
    ("outer of dY, by rows", "outer bf16 {} 1 1", "outer_dy_by_rows"),
    ("outer of x, by rows", "outer bf16 {} 0 1", "outer_x_by_rows"),
)


def padded(rank: int) -> int:
    return 16 if rank <= 16 else 32 if rank <= 32 else 64


def sizes() -> dict:
    """What the launchers decide: shared memory, threads, and the cut of SHAPES."""
    program = ROOT / "build" / "emulation" / "sizes"
    program.parent.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "tests/emulation/sizes.cpp", *sorted((ROOT / "csrc/emulation").glob("*.cpp"))]
    command = [
        "g++",
        *LANGUAGE.split(),
        "-Wno-unknown-pragmas",
        f"-I{ROOT / 'csrc'}",
        *map(str, sources),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    shapes = [str(v) for n, d, rank in SHAPES for v in (n, d, d, rank)]
    return json.loads(subprocess.run([str(program), *shapes], capture_output=True, text=True, check=True).stdout)


def blocks_per_sm(registers: int, threads: int, shared: int) -> int:
    each = (registers + 7) // 8 * 8 * threads
    return min(SM_REGISTERS // each, SM_SHARED // (shared + 1024), SM_THREADS // threads)


def kernel_rows(found: dict[str, sass.Resources], steps: dict[str, int], given: dict) -> list[str]:
    rows = [
        "| bf16 kernel | rank | registers | shared KB | blocks per SM | warp instructions per step | per KB of the step |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for title, name, launcher in KERNELS:
        for rank in (16, 32, 64):
            kernel = name.format(rank)
            threads, shared, elements = given["kernels"][str(rank)][launcher]
            registers = found[kernel].registers
            per_kb = steps[kernel] * threads // 32 / (elements * 2 / 1024)
            blocks = blocks_per_sm(registers, threads, shared)
            rows.append(
                f"| {title} | {rank} | {registers} | {shared / 1024:.1f} | {blocks} | {steps[kernel]} | {per_kb:.0f} |"
            )
    return rows


def seconds(moved: float, instructions: float = 0.0) -> float:
    """Of one kernel."""
    return FIXED + max(moved / (COPY * STRIPS), instructions / (SMS * ISSUE))


def shape_rows(steps: dict[str, int], given: dict) -> list[str]:
    head = ("N, d, rank (8 tasks)", "forward", "floor", "dY pass", "floor", "x pass", "floor", "scratch MB")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (n, d, rank), plan in zip(SHAPES, given["plans"], strict=True):
        rp, wide, narrow, factors = padded(rank), 2.0 * n * d, 4.0 * n * rank, 8.0 * d * rank * 2

        def issued(title: str, n: int = n, d: int = d, rp: int = rp) -> float:
            name, launcher = next((n, launcher) for t, n, launcher in KERNELS if t == title)
            threads, _, elements = given["kernels"][str(rp)][launcher]
            return n * d / elements * threads / 32 * steps[name.format(rp)]

        parts, parts_x = (4.0 * plan[name] * rank * d for name in ("chunks", "chunks_x"))
        gradients = 8.0 * rank * d * 4
        forward = seconds(wide + plan["ranges"] * narrow + factors, issued("shrink"))
        forward += seconds(2 * wide + (plan["ranges"] + 1) * narrow + factors, issued("expand, adds to y"))
        dy = seconds(wide + parts + (plan["groups"] + 1) * narrow + factors, issued("outer of dY"))
        dy += seconds((plan["groups"] + 1) * narrow) + seconds(parts + gradients)
        x = seconds(wide + parts_x + narrow, issued("outer of x")) + seconds(parts_x + gradients)
        x += seconds(2 * wide + narrow + factors, issued("expand of dX"))
        times = (forward, 3 * wide / COPY, dy, wide / COPY, x, 3 * wide / COPY)
        cells = " | ".join(f"{1e6 * t:.0f}" if i % 2 == 0 else f"{1e6 * t:.1f}" for i, t in enumerate(times))
        rows.append(f"| {n}, {d}, {rank} | {cells} | {' + '.join(f'{b / 1e6:.1f}' for b in plan['scratch'])} |")
    return rows


def lower(steps: dict[str, int], may_rise: bool) -> None:
    """Writes the budget; stops where a number rose."""
    before = json.loads(BUDGET.read_text())["instructions"] if BUDGET.exists() else {}
    rose = {name: (before[name], now) for name, now in steps.items() if now > before.get(name, now)}
    if rose and not may_rise:
        sys.exit(
            "more instructions per step than before: " + ", ".join(f"{n} {a} -> {b}" for n, (a, b) in rose.items())
        )
    BUDGET.write_text(json.dumps({"nvcc": nvcc.version(), "arch": ARCH, "instructions": steps}, indent=1) + "\n")


def measure(obj: Path, tool: str) -> dict[str, int]:
    """Instructions per step of every streaming kernel of an object."""
    listings = sass.disassemble(tool, obj, ARCH)
    counts = {name: sass.instructions_per_step(listing) for name, listing in listings.items()}
    return {name: count for name, count in sorted(counts.items()) if count is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raise", dest="may_rise", action="store_true", help="accept numbers that rose")
    options = parser.parse_args()
    tool = sass.cuobjdump()
    if not nvcc.NVCC or not tool:
        sys.exit("nvcc and cuobjdump are needed: make nvcc, or set CUDA_HOME and MHR_CUOBJDUMP")
    obj = nvcc.compile_kernel(SOURCE, ARCH)
    found = sass.resources(obj.with_name(f"{obj.name}.log").read_text(), ARCH)
    wasted = [name for name, r in found.items() if r.stack or r.spills]
    if wasted:
        sys.exit(f"spills or a stack: {', '.join(wasted)}")
    steps, given = measure(obj, tool), sizes()
    lower(steps, options.may_rise)
    text = DOCS.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    tables = "\n".join([*kernel_rows(found, steps, given), "", *shape_rows(steps, given)])
    DOCS.write_text(f"{text[:begin]}\n{tables}\n\n{text[end:]}")
    print(f"wrote the tables of {DOCS} and {BUDGET}")


if __name__ == "__main__":
    main()
