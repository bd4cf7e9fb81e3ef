"""The tables of gpu.md, from whatever has been measured so far."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
Table = dict[str, Any]


def tables(record: Row) -> list[Table]:
    made = [_targets(record), _steps(record), _adapters(record), _short(record), _layers(record), _together(record)]
    made += [_kernels(record), _ops(record)]
    if record["failed"]:
        made.append(
            {
                "title": "What did not run",
                "columns": ["", "error"],
                "rows": [[row["what"], row["error"]] for row in record["failed"]],
            }
        )
    return [table for table in made if table["rows"]]


def _targets(record: Row) -> Table:
    """What the kernels are to reach, and how far the worst case is from it."""
    floor, poly, lora = [], [], []
    for shape in record["shapes"]:
        at = ", ".join(str(shape["adapter"][key]) for key in "NdrT")
        for mode in ("forward", "backward"):
            if shape["adapter"]["N"] >= 8192:
                floor.append((shape["adapter"][mode]["of_floor"], f"{mode} at {at}"))
        for mode in ("forward", "train"):
            ours = shape["layer"][mode].get("ours", {})
            if "of_peft_poly" in ours:
                poly.append((ours["of_peft_poly"], f"{mode} at {at}"))
    for step in record["steps"]:
        ms = step.get("ms", {})
        for how in ("called", "graph"):
            if how in ms.get("ours", {}) and how in ms.get("peft_lora", {}):
                lora.append((ms["ours"][how] / ms["peft_lora"][how], f"{step['what']}, {how}"))
    rows = []
    for what, limit, found in (
        ("the adapter alone, of the byte floor, N >= 8192", 1.15, floor),
        ("a layer's overhead on the device, of PEFT Poly's", 0.25, poly),
        ("a training step, of PEFT LoRA's", 1.0, lora),
    ):
        if found:
            worst, where = max(found)
            met = sum(ratio <= limit for ratio, _ in found)
            rows.append([what, limit, f"{met} of {len(found)}", min(found)[0], worst, where])
    return {"title": "Targets", "columns": ["", "at most", "met", "best", "worst", "worst where"], "rows": rows}


def _mark(row: Row, known: str = "agrees") -> str:
    return "" if row.get(known, True) else "OFF"


def _steps(record: Row) -> Table:
    rows = []
    for step in record["steps"]:
        frozen = step.get("ms", {}).get("frozen", {}).get("graph")
        errors = step.get("errors", {})
        for peer, ms in step.get("ms", {}).items():
            graph = ms.get("graph")
            cells = [ms.get("called"), step["of_frozen"].get(peer), graph, graph and frozen and graph / frozen]
            cells.append(errors.get(peer))
            mark = _mark(step) if peer == "ours" else step["failed"].get(f"{peer}, graph", "")
            rows.append([step["what"], peer, *("" if c is None else c for c in cells), mark])
        rows += [[step["what"], peer, *[""] * 5, why] for peer, why in step["failed"].items() if "graph" not in peer]
    limits = {step["what"]: step["agreement"] for step in record["steps"] if "agreement" in step}
    return {
        "title": "A training step, bfloat16",
        "columns": [
            "",
            "",
            "ms as called",
            "of the frozen model's",
            "ms in a graph",
            "of the frozen model's",
            "error in float32",
            "",
        ],
        "rows": rows,
        "note": "Errors: largest RMS error of loss, logits and gradients against float64; OFF where ours is beyond "
        + ", ".join(f"{limit:.0e} ({what})" for what, limit in limits.items())
        + ". PEFT's Poly reads task ids back to the host, which no graph can hold.",
    }


ADAPTER_COLUMNS = (
    *(f"{mode}{n}" for mode in ("forward", "backward") for n in ("", ", floor", " / floor", " / moved", " / cuBLAS")),
    *("vLLM, forward", "error", ""),
)


def _adapter_cells(row: Row) -> list[Any]:
    keys = ("us", "floor_us", "of_floor", "of_moved", "of_cublas")
    cells = [row[mode][key] for mode in ("forward", "backward") for key in keys]
    vllm = row["forward"]["vllm"]
    return [*cells, vllm["us"] if isinstance(vllm, dict) else "", row["errors"]["ours"], _mark(row)]


def _short(record: Row) -> Table:
    return {
        "title": "The same of short segments, G of them",
        "columns": [*"NdrTG", *ADAPTER_COLUMNS],
        "rows": [[*(row[key] for key in "NdrTG"), *_adapter_cells(row)] for row in record.get("short", ())],
    }


def _together(record: Row) -> Table:
    rows = [
        [*(row[key] for key in "NdrT"), mode, found["frozen"]["us"], *found["over_us"].values()]
        + [found["floor_us"], found["of_floor"]]
        + [found["together"]["called_us"], found["apart"]["called_us"], row["errors"]["together"], _mark(row)]
        for row in record.get("together", ())
        for mode, found in ((mode, row[mode]) for mode in ("forward", "train"))
    ]
    what = ("", "linears", "one call", "three calls", "floor", "one call / floor")
    return {
        "title": "Three layers of the same x in one call of routed_linears and in three of routed_linear, microseconds over the frozen linears",
        "columns": [*"NdrT", *what, "one call, as called", "three calls, as called", "error", ""],
        "rows": rows,
        "note": "The floor counts x once. As called: with the linears and the host's time, calls in a row.",
    }


def _adapters(record: Row) -> Table:
    rows = [
        [*(shape["adapter"][key] for key in "NdrT"), *_adapter_cells(shape["adapter"])] for shape in record["shapes"]
    ]
    peers = {shape["adapter"]["forward"]["vllm"] for shape in record["shapes"] if not _timed_vllm(shape)}
    return {
        "title": "The routed adapter alone, microseconds in a graph with a cold L2",
        "columns": [*"NdrT", *ADAPTER_COLUMNS],
        "rows": rows,
        "note": f"{len(rows)} of {record.get('shapes_of_grid', 0)} shapes in the time there was. The floor counts activations, "
        "factors, their gradients and what forward keeps; moved also the partial sums, written and read."
        + "".join(f" vLLM: {why}." for why in sorted(peers)),
    }


def _timed_vllm(shape: Row) -> bool:
    return isinstance(shape["adapter"]["forward"]["vllm"], dict)


def _layers(record: Row) -> Table:
    peers = ("ours", "peft_poly", "peft_lora", "eager", "compile", "lorafusion")
    rows = []
    for shape in record["shapes"]:
        row, head = shape["layer"], [shape["adapter"][key] for key in "NdrT"]
        for mode in ("forward", "train"):
            found = row[mode]
            for key, linear, what in (("over_us", "us", "device"), ("called_over_us", "called_us", "as called")):
                cells = [found.get("linear", {}).get(linear, "")]
                cells += [found.get(peer, {}).get(key, "") for peer in peers]
                rows.append([*head, f"{mode}, {what}", *cells, _mark(row)])
    failed = {f"{peer}: {why}" for shape in record["shapes"] for peer, why in shape["layer"].get("failed", {}).items()}
    uncaptured = {
        f"{peer} ({found['not_captured']})"
        for shape in record["shapes"]
        for mode in ("forward", "train")
        for peer, found in shape["layer"][mode].items()
        if "not_captured" in found
    }
    return {
        "title": "Overhead of a whole layer over the frozen linear, microseconds",
        "columns": [
            *"NdrT",
            "",
            "linear",
            "ours",
            "PEFT Poly",
            "PEFT LoRA",
            "eager",
            "torch.compile",
            "LoRAFusion",
            "",
        ],
        "rows": rows,
        "note": "As called: with the host's time, calls in a row."
        + (f" Without a graph: {'; '.join(sorted(uncaptured))}." if uncaptured else "")
        + (f" Failed: {'; '.join(sorted(failed))}." if failed else ""),
    }


def _kernels(record: Row) -> Table:
    rows = []
    for shape in record["kernels"]:
        for mode in ("forward", "backward"):
            found = shape[mode]
            head = [f"{shape['N']}, {shape['d']}, {shape['r']}", mode]
            rows.append([*head, "all", found["sum_us"], "", found["floor_us"]])
            rows += [[*head, name, k["us"], k["launches"], ""] for name, k in found["kernels"].items()]
    return {
        "title": "Each kernel's own time, by torch.profiler, with a cold L2 before the first",
        "columns": ["N, d, r", "", "kernel", "us", "launches", "floor, us"],
        "rows": rows,
    }


def _ops(record: Row) -> Table:
    keys = ("us", "floor_us", "of_floor", "of_eager")
    return {
        "title": "Mixing and averaging",
        "columns": ["", "us", "floor", "of the floor", "of eager", "error"],
        "rows": [
            [f"{row['what']}, {mode}", *(row[mode][key] for key in keys), row["errors"]["ours"]]
            for row in record["ops"]
            for mode in ("forward", "train")
            if mode in row
        ],
    }
