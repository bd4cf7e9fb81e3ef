"""What the compiler made of the CUDA kernels: registers and spills from the assembler's report, instructions from SASS.

The instructions counted are those of one pass of the loop that streams: the way that copies and stores whole vectors,
meets the fewest barriers and is the shortest. A predicated instruction counts, whether it does something or not.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.emulation.nvcc import tool

# The only loop within a streaming loop is that of D B^T, which takes so many steps of two ldmatrix each (16-bit types).
PRODUCT_STEPS = 16
REPORT = re.compile(
    r"Compiling entry function '(\S+)' for '(sm_\d+)'\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\n.*Used (\d+) registers"
)
TYPES = {"13__nv_bfloat16": "bf16", "6__half": "fp16", "f": "fp32", "d": "fp64"}
NAME = re.compile(r"_ZN3mhr4cuda\d+([a-z_]+)_kernelI?(13__nv_bfloat16|6__half|f(?=[EL])|d(?=[EL]))?((?:L[ib]\d+E)*)")


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int
    spills: int


def short_name(symbol: str) -> str:
    """ "expand_kernel<bf16, 16, false, true, false>" as "expand bf16 16 0 1 0"."""
    match = NAME.match(symbol)
    if not match:
        return symbol
    numbers = re.findall(r"L[ib](\d+)E", match[3])
    return " ".join([match[1], *([TYPES[match[2]]] if match[2] else []), *numbers])


def resources(report: str, arch: str) -> dict[str, Resources]:
    """Of each kernel that the assembler reports (nvcc -Xptxas=-v) for an architecture, such as "sm_90"."""
    return {
        short_name(name): Resources(int(registers), int(stack), int(stores) + int(loads))
        for name, of, stack, stores, loads, registers in REPORT.findall(report)
        if of == arch
    }


def cuobjdump() -> str | None:
    """The disassembler: the one that MHR_CUOBJDUMP names, or beside nvcc."""
    return os.environ.get("MHR_CUOBJDUMP") or tool("cuobjdump")


@dataclass
class Block:
    """Instructions up to a branch: (address, text) each."""

    lines: list[tuple[int, str]]
    next: list[int]

    @property
    def cost(self) -> tuple[int, int, int]:
        """Barriers, minus whole vectors moved, instructions: what a way through the loop should have little of."""
        texts = [text for _, text in self.lines]
        barriers = sum("BAR.SYNC" in text for text in texts)
        vectors = sum(bool(re.search(r"LDGSTS|STG\.E\.128|LDG\.E\.128", text)) for text in texts)
        return barriers, -vectors, len(texts)


def blocks_of(listing: Iterable[str]) -> dict[int, Block]:
    """Basic blocks of one kernel, by the address of their first instruction."""
    lines = []
    for line in listing:
        match = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line)
        if match and not match[2].startswith("NOP"):
            lines.append((int(match[1], 16), match[2].strip()))
    target = re.compile(r"\b(?:BRA|BRX|CALL\S*)\b.*?0x([0-9a-f]+)")
    starts = {lines[0][0]} if lines else set()
    for i, (_, text) in enumerate(lines):
        jump = target.search(text)
        if jump and " BRA" in f" {text}":
            starts.add(int(jump[1], 16))
        if (jump or "EXIT" in text) and i + 1 < len(lines):
            starts.add(lines[i + 1][0])
    blocks: dict[int, Block] = {}
    current: list[tuple[int, str]] = []
    for at, text in [*lines, (-1, "")]:
        if current and (at in starts or at == -1):
            last = current[-1][1]
            jump = target.search(last) if " BRA" in f" {last}" else None
            conditional = last.startswith("@") or " P" in last or "UP" in last.split("BRA")[-1]
            following = [int(jump[1], 16)] if jump else []
            ends = "EXIT" in last or jump is not None
            if at != -1 and (not ends or conditional):
                following.append(at)
            blocks[current[0][0]] = Block(current, following)
            current = []
        current.append((at, text))
    return blocks


def loops_of(blocks: dict[int, Block]) -> list[tuple[int, set[int]]]:
    """Each loop's header and the blocks of its body, innermost (smallest) first."""
    before: dict[int, list[int]] = {at: [] for at in blocks}
    for at, block in blocks.items():
        for to in block.next:
            if to in before:
                before[to].append(at)
    bodies: dict[int, set[int]] = {}
    for at, block in blocks.items():
        for header in block.next:
            if header <= at and header in blocks:  # a jump back
                body, waiting = {header}, [at]
                while waiting:
                    one = waiting.pop()
                    if one not in body and one >= header:
                        body.add(one)
                        waiting += before[one]
                bodies.setdefault(header, set()).update(body)
    return sorted(bodies.items(), key=lambda loop: len(loop[1]))


def instructions_per_step(listing: Iterable[str]) -> int | None:
    """Warp instructions of one pass of the streaming loop, or None where a kernel has none."""
    blocks = blocks_of(listing)
    loops = loops_of(blocks)

    def has(body: set[int], text: str) -> bool:
        return any(text in line for at in body for _, line in blocks[at].lines)

    streaming = next(((h, b) for h, b in loops if all(has(b, t) for t in ("BAR.SYNC", "LDGSTS", "HMMA"))), None)
    if streaming is None:
        return None
    header, body = streaming
    # Rolled loops within: the product's, whose passes follow from what it multiplies.
    products = {h: b for h, b in loops if h != header and h in body and b < body and has(b, "HMMA")}
    passes = {}
    for h, b in products.items():
        loads = sum("LDSM" in line for at in b for _, line in blocks[at].lines)
        passes[h] = max(1, PRODUCT_STEPS * 2 // max(1, loads))

    @functools.cache
    def best(at: int) -> tuple[tuple[int, int, int], bool]:
        """The cheapest way from a block back to the header, and whether there is one."""
        barriers, vectors, count = blocks[at].cost
        inner = next((h for h, b in products.items() if at in b), None)
        if inner is not None:
            count *= passes[inner]
        ways = []
        for to in blocks[at].next:
            if to == header:
                ways.append((0, 0, 0))
            elif to in body and to > at:
                way, arrives = best(to)
                if arrives:
                    ways.append(way)
        if not ways:
            return (0, 0, 0), False
        way = min(ways)
        return (barriers + way[0], vectors + way[1], count + way[2]), True

    (_, _, count), arrives = best(header)
    return count if arrives else None


def disassemble(program: str, obj: Path, arch: str) -> dict[str, list[str]]:
    """Each kernel's SASS."""
    command = [program, "-sass", "-arch", arch, str(obj)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return split_functions(text)


def split_functions(text: str) -> dict[str, list[str]]:
    kernels: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        name = re.match(r"\s+Function : (\S+)", line)
        if name:
            current = kernels.setdefault(short_name(name[1]), [])
        current.append(line)
    return kernels
