"""The results of `mhr benchmark ops` as tables and plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PEERS = {
    "peft_poly": "PEFT Poly",
    "eager": "eager",
    "peft_lora": "PEFT LoRA",
    "ours_with_noise": "ours, PEFT's noise",
    "ours": "ours",
}
COLOURS = {
    "peft_poly": "#b23a48",
    "eager": "#d98c3f",
    "peft_lora": "#7a8b3c",
    "ours_with_noise": "#8fb4d9",
    "ours": "#2b5f9e",
}
DTYPES, MODES = ("float32", "bfloat16"), ("forward", "train")
SHORT = {"float32": "fp32", "bfloat16": "bf16"}

OFF = "ours is off"
"""Stands in place of the times of a shape where ours is further from float64 than its dtype explains."""

Result = Mapping[str, Any]
Table = dict[str, Any]


def tables(record: Result) -> list[Table]:
    """What `mhr benchmark ops` prints."""
    return [
        _summary(record),
        _errors(record),
        _tiny(record["tiny"]),
        _growth(record["growth"]),
        _shapes(record),
    ]


def _summary(record: Result) -> Table:
    results = record["results"]
    rows = []
    for dtype in DTYPES:
        for mode in MODES:
            for ranks, name in (((1, 4), "r <= 4"), ((16,), "r = 16")):
                chosen = [
                    r
                    for r in results
                    if (r["dtype"], r["mode"]) == (dtype, mode) and r["rank"] in ranks and r["agrees"]
                ]
                if not chosen:
                    continue
                ratios = [r["of_poly"]["ours"] for r in chosen]
                noisy = [r["of_poly"]["ours_with_noise"] for r in chosen if "ours_with_noise" in r["of_poly"]]
                wide = [r["of_linear"] for r in chosen if r["n_in"] == 2048]
                loras = [r["of_lora"] for r in chosen if r["of_lora"] is not None]
                rows.append(
                    [
                        f"{dtype} {mode} {name}",
                        len(ratios),
                        statistics.median(ratios),
                        max(ratios),
                        statistics.median(noisy) if noisy else "",
                        statistics.median(loras) if loras else "",
                        max(w["ours"] for w in wide) if wide else "",
                        max(w["peft_poly"] for w in wide) if wide else "",
                    ]
                )
    return {
        "title": "Overhead over the frozen linear, as a fraction of PEFT Poly's",
        "columns": [
            "",
            "shapes",
            "median",
            "worst",
            "median with PEFT's noise",
            "of PEFT LoRA's",
            "worst layer / linear at d 2048",
            "Poly's",
        ],
        "rows": rows,
        "note": _note(record),
    }


def _note(record: Result) -> str:
    results = record["results"]
    off = [r["shape"] for r in results if not r["agrees"]]
    least = min((r["repetitions"] for r in results if r["agrees"]), default=0)
    return (
        f"{len(results)} of the grid's {record['shapes_of_grid']} shapes, in a random order; {least} repetitions or more. "
        + (f"No time for {len(off)} shapes where ours is off: {', '.join(off[:3])}. " if off else "")
        + "".join(f"{dtype} is left out: this processor only emulates it. " for dtype in record.get("emulated", ()))
        + "An overhead below 0 is smaller than what the frozen linear's own time varies by."
    )


def _errors(record: Result) -> Table:
    """Errors of all shapes, the untimed ones too."""
    results = [record["tiny"], *record["growth"], *record["results"]]
    groups = [(d, m, [r for r in results if (r["dtype"], r["mode"]) == (d, m)]) for d in DTYPES for m in MODES]
    names = [name for name in PEERS if name in record["tiny"]["errors"]]
    return {
        "title": "Largest RMS error against float64, outputs and gradients of all shapes",
        "columns": ["", *(PEERS[name] for name in names)],
        "rows": [
            [f"{dtype} {mode}", *(f"{max(r['errors'][name] for r in of):.1e}" for name in names)]
            for dtype, mode, of in groups
            if of
        ],
    }


def _tiny(result: Result) -> Table:
    title = "Cost of calling: 1x1x64, forward and backward"
    if not result["agrees"]:
        return {"title": title, "columns": [OFF], "rows": []}
    of_linear = {"linear": 1.0, **result["of_linear"]}
    return {
        "title": title,
        "columns": ["", "us", "of the frozen linear"],
        "rows": [[PEERS.get(name, name), us, of_linear[name]] for name, us in result["us"].items()],
    }


def _growth(results: Sequence[Result]) -> Table:
    return {
        "title": "How the overhead grows with tokens: d 1024, rank 4, 8 heads, 4 tasks, float32, train; microseconds",
        "columns": ["tokens", "linear", *PEERS.values()],
        "rows": [
            [r["tokens"], r["us"]["linear"], *(r["overhead_us"][peer] for peer in PEERS)]
            if r["agrees"]
            else [r["tokens"], *[OFF] * (len(PEERS) + 1)]
            for r in results
        ],
    }


def _shapes(record: Result) -> Table:
    bandwidth = record["machine"]["copy_gb_per_s"]
    columns = ["", "linear", "ours", "Poly", "ours / Poly", "GB/s", "of copy"]
    rows = []
    for r in record["results"]:
        name = f"{SHORT[r['dtype']]} {r['mode']} {r['shape']}"
        if not r["agrees"]:
            rows.append([name, *[OFF] * (len(columns) - 1)])
            continue
        over, rate = r["overhead_us"], r["gb_per_s"]
        rows.append(
            [
                name,
                r["us"]["linear"],
                over["ours"],
                over["peft_poly"],
                r["of_poly"]["ours"],
                *(("", "") if rate is None else (rate, rate / bandwidth)),
            ]
        )
    return {
        "title": "Each shape (batch x length, d in-out, H heads, r rank, t tasks): microseconds over the frozen linear",
        "columns": columns,
        "rows": rows,
        "note": f"GB/s of the bytes that no implementation can do without; a copy moves {bandwidth} GB/s here.",
    }


def plots(record: Result) -> dict[str, Figure]:
    """Overhead against PEFT's Poly by rank and width, and the cost as tokens grow; by the name of the file."""
    from matplotlib.figure import Figure

    overhead = Figure(figsize=(9, 6), dpi=150, layout="constrained", facecolor="white")
    for axes, (dtype, mode) in zip(
        overhead.subplots(2, 2, sharey=True).flat, [(d, m) for d in DTYPES for m in MODES], strict=True
    ):
        _plot_overhead(axes, [r for r in record["results"] if (r["dtype"], r["mode"]) == (dtype, mode) and r["agrees"]])
        axes.set_title(f"{dtype}, {mode}", fontsize=9)
    overhead.suptitle("Overhead over the frozen linear, as a fraction of PEFT Poly's; a dot is a shape", fontsize=10)
    growth = Figure(figsize=(6, 4), dpi=150, layout="constrained", facecolor="white")
    _plot_growth(growth.add_subplot(), [r for r in record["growth"] if r["agrees"]])
    return {"ops_overhead": overhead, "ops_growth": growth}


def _plot_overhead(axes: Axes, results: Sequence[Result]) -> None:
    """A column of dots for each rank and width, and a bar at the median."""
    groups = sorted({(r["rank"], r["n_in"]) for r in results})
    for place, group in enumerate(groups):
        # Below 0 the overhead was smaller than what the frozen linear's own time varies by.
        ratios = [max(r["of_poly"]["ours"], 0.0) for r in results if (r["rank"], r["n_in"]) == group]
        axes.plot([place] * len(ratios), ratios, "o", color=COLOURS["ours"], markersize=3, alpha=0.4, markeredgewidth=0)
        axes.hlines(statistics.median(ratios), place - 0.3, place + 0.3, color="black", linewidth=1.5)
    axes.set_xticks(range(len(groups)), [f"r {r}\nd {d}" for r, d in groups], fontsize=6)
    axes.set_ylim(0, 1)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", color="0.9")


def _plot_growth(axes: Axes, results: Sequence[Result]) -> None:
    tokens = [r["tokens"] for r in results]
    for peer, name in PEERS.items():
        # Below 0 an overhead was lost in what the frozen linear's own time varies by, and has no place on this axis.
        above = [max(r["overhead_us"][peer], 0.0) or math.nan for r in results]
        axes.plot(tokens, above, "o-", label=name, color=COLOURS[peer], markersize=4)
    axes.plot(tokens, [r["us"]["linear"] for r in results], "--", label="the frozen linear itself", color="0.5")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(tokens, [str(n) for n in tokens])
    axes.minorticks_off()
    axes.set_xlabel("tokens", fontsize=8)
    axes.set_ylabel("microseconds over the frozen linear", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    axes.set_title("Training: d 1024, rank 4, 8 heads, 4 tasks, float32, one thread", fontsize=9)
