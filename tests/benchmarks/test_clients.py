"""What `make clients` makes of what clients say: a client that disagrees is a fault, and so is a comparison that shows nothing."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mhr_benchmarks import clients
from mhr_benchmarks.clients import TASKS, UNEQUAL, Clients, once, summary

ROOT = Path(__file__).parents[2]
NAMES = ("base", *TASKS, UNEQUAL)


def distributions(tokens: list[int]) -> np.ndarray:
    """Log-probabilities [prompts, 8], with these tokens the likeliest."""
    logits = np.zeros((len(tokens), 8))
    logits[np.arange(len(tokens)), tokens] = 3.0
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def seen(folder: Path, **tokens: list[int]) -> dict[str, Path]:
    files = {}
    for i, name in enumerate(NAMES):
        files[name] = folder / f"{i}.npy"
        np.save(files[name], distributions(tokens.get(name, [i, i])))
    return files


def llama(name: str, theirs: int) -> dict[str, Any]:
    row = {"same_tokens": True, "covered": 1.0, "kl": 1e-9, "difference": 1e-6}
    return row | {"adapter": name, "ours": NAMES.index(name), "theirs": theirs}


def said(adapter: str, **changed: Any) -> dict[str, Any]:
    row = {
        "client": "PEFT",
        "agreement": 1.0,
        "kl": 0.0,
        "tensors": 3,
        "equal": 3,
        "only_one_has": [],
        "difference": 0.0,
    }
    return row | {"adapter": adapter} | changed


def test_clients_that_agree(tmp_path: Path) -> None:
    rows = [llama(name, NAMES.index(name)) for name in NAMES for _ in range(2)]
    tables, faults = summary(seen(tmp_path), rows, [said(TASKS[0])], [said(TASKS[0])])
    assert faults == []
    assert [row[:4] for row in tables[0]["rows"]] == [["base", 2, 0, "100.0%"]] + [
        [name, 2, 2, "100.0%"] for name in NAMES[1:]
    ]
    assert [len(row) for table in tables for row in table["rows"]] == [
        len(t["columns"]) for t in tables for _ in t["rows"]
    ]


def test_what_is_a_fault(tmp_path: Path) -> None:
    rows = [llama(name, NAMES.index(name)) for name in NAMES for _ in range(2)]
    rows[-1]["theirs"] = 0
    files = seen(tmp_path, **{TASKS[1]: [0, 0]})  # as without an adapter
    mergekit = [said(TASKS[0], difference=1e-3), said(TASKS[1], only_one_has=["lm_head.weight"])]
    _, faults = summary(files, rows, mergekit, [said(UNEQUAL, agreement=0.9)])
    assert [fault.partition(":")[0] for fault in faults] == [
        "llama.cpp, base",
        f"llama.cpp, {TASKS[1]}",
        TASKS[1],
        f"llama.cpp, {UNEQUAL}",
        f"PEFT, {UNEQUAL}",
        f"mergekit, {TASKS[0]}",
        f"mergekit, {TASKS[1]}",
    ]


def test_what_is_interrupted_is_made_again(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    target = tmp_path / "file"
    with pytest.raises(KeyboardInterrupt):
        once(target, interrupted)
    assert not target.exists()
    assert once(target, lambda path: path.write_text("whole")).read_text() == "whole"
    assert once(target, interrupted).read_text() == "whole"


def test_a_client_that_fails_ends_it_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 3: see .*broken\.log"):
        Clients(tmp_path, tmp_path).run(sys.executable, "-c", "print('why'); raise SystemExit(3)", log="broken")
    assert (tmp_path / "broken.log").read_text() == "why\n"


def test_next_tokens_of_a_server_are_compared_over_its_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", types.ModuleType("xllamacpp"))
    from mhr_benchmarks.clients_llama import compared

    ours = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    same = compared(ours, {2: ours[2] + 1e-5, 0: ours[0] + 1e-5, 1: ours[1] + 1e-5})
    assert (same["ours"], same["theirs"], same["covered"]) == (0, 0, pytest.approx(0.9))
    assert abs(same["kl"]) < 1e-12
    other = compared(ours, {1: np.log(0.5), 0: np.log(0.5)})
    assert other["theirs"] == 1
    p = np.array([3 / 7, 4 / 7])
    assert other["kl"] == pytest.approx((p * np.log(p / 0.5)).sum())
    assert other["difference"] == pytest.approx(np.log(7 / 6))


def test_the_page_names_the_versions_that_are_installed() -> None:
    rule = (ROOT / "Makefile").read_text()
    page = (ROOT / "docs" / "serving.md").read_text()
    for package in ("xllamacpp", "mergekit", "llama-cpp-python"):
        (version,) = set(re.findall(rf"{package}==(\S+)", rule))
        assert f"{package} {version}" in page
    assert clients.LEAST_AGREEMENT >= 0.98
