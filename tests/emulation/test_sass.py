"""Reading of SASS and of the assembler's report, and the tables made of them."""

from __future__ import annotations

import json

from tests.emulation.kernel_table import BEGIN, BUDGET, DOCS, END, KERNELS, blocks_per_sm
from tests.emulation.sass import Resources, instructions_per_step, resources, short_name

LOOP = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDGDEPBAR ;
        /*0020*/                   DEPBAR.LE SB0, 0x2 ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/              @!P0 BRA 0xa0 ;
        /*0050*/              @!P1 BRA 0x80 ;
        /*0060*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        /*0070*/                   BRA 0xa0 ;
        /*0080*/                   LDG.E.U16 R1, [R2.64] ;
        /*0090*/              @P2  BRA 0x80 ;
        /*00a0*/                   HMMA.16816.F32.BF16 R12, R32, R28, R12 ;
        /*00b0*/              @!P3 BRA 0xd0 ;
        /*00c0*/                   HMMA.16816.F32.BF16 R12, R32, R28, R12 ;
        /*00d0*/              @P4  BRA 0x20 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   BRA 0xf0 ;
"""


def test_counts_the_way_that_moves_whole_vectors() -> None:
    assert instructions_per_step(LOOP.splitlines()) == 9  # neither the elements nor the product that may be left out
    assert instructions_per_step(LOOP.replace("HMMA", "FFMA").splitlines()) is None


def test_reads_the_report() -> None:
    report = (
        "ptxas info    : Compiling entry function '_ZN3mhr4cuda13expand_kernelI13__nv_bfloat16Li16ELb0ELb1ELb0EEEvNS0_10"
        "ExpandArgsE' for 'sm_90'\nptxas info    : Function properties for _ZN\n    0 bytes stack frame, 4 bytes spill"
        " stores, 8 bytes spill loads\nptxas info    : Used 80 registers, used 1 barriers\n"
    )
    assert resources(report, "sm_90") == {"expand bf16 16 0 1 0": Resources(80, 0, 12)}
    assert not resources(report, "sm_80")
    assert short_name("_ZN3mhr4cuda12outer_kernelIfLi64ELb1EEEvNS0_9OuterArgsE") == "outer fp32 64 1"
    assert short_name("_ZN3mhr4cuda13gather_kernelILi256ELi4EEEvNS0_10GatherArgsE") == "gather 256 4"
    assert short_name("_ZN3mhr4cuda12route_kernelENS0_5RouteE") == "route"


def test_blocks_per_sm() -> None:
    assert blocks_per_sm(72, 128, 49152) == 4  # shared memory
    assert blocks_per_sm(168, 128, 4096) == 3  # registers
    assert blocks_per_sm(16, 1024, 0) == 2  # threads


def test_the_table_shows_the_budget() -> None:
    budget = json.loads(BUDGET.read_text())["instructions"]
    text = DOCS.read_text()
    table = text[text.index(BEGIN) : text.index(END)]
    cells = {
        tuple(c.strip() for c in line.split("|")[1:3]): line.split("|")[6].strip()
        for line in table.splitlines()[1:]
        if line.count("|") == 8
    }
    for title, name, _ in KERNELS:
        for rank in (16, 32, 64):
            assert cells[title, str(rank)] == str(budget[name.format(rank)]), f"{title} {rank}"
