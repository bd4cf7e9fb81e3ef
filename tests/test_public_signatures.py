"""No public signature changes without its line in the changelog."""

from __future__ import annotations

import json

from tests.signatures import (
    ARTIFACTS,
    CHANGELOG,
    HEADING,
    Signatures,
    changes,
    listed,
    public_signatures,
    released,
    rewritten,
)


def test_every_change_since_the_last_release_stands_in_the_changelog() -> None:
    version, before = released()
    expected, found = changes(before, public_signatures()), listed(CHANGELOG.read_text("utf-8"))
    missing = "\n".join(line for line in expected if line not in found)
    stale = "\n".join(line for line in found if line not in expected)
    assert expected == found, (
        f"Public signatures are not those of {version} and of CHANGELOG.md [Unreleased]. If that is meant, say it under {HEADING!r} "
        f"(`python -m tests.signatures` writes the section again).\nMissing there:\n{missing}\nNot so any more:\n{stale}"
    )


def test_signatures_of_the_first_release_are_there() -> None:
    before: Signatures = json.loads((ARTIFACTS / "v0.1.0" / "signatures.json").read_text("utf-8"))
    assert {
        "mhr.attach",
        "mhr.AdapterBank.for_batch",
        "mhr.ops.mix",
        "mhr.evaluation.evaluate",
        "mhr.merging.merge",
    } <= before.keys()
    assert before["mhr.evaluation.evaluate"]["split"] == "str = 'test' (keyword-only)"


BEFORE: Signatures = {
    "m.f": {"x": "int", "y": "float = 0.5", "loud": "bool = False (keyword-only)", "return": "int"},
    "m.C": {"a": "int"},
    "m.C.go": {"self": ""},
    "m.D": {"a": "int"},
}


def change(name: str, **parameters: str) -> list[str]:
    return changes(BEFORE, BEFORE | {name: parameters})


def test_what_a_change_is_called() -> None:
    same = BEFORE["m.f"]
    assert changes(BEFORE, BEFORE) == []
    assert change("m.f", **same | {"z": "int = 1 (keyword-only)"}) == ["- `m.f`: new `z`."]
    assert change("m.f", **same | {"y": "float = 1.0"}) == ["- `m.f`: `y` is `float = 1.0`, was `float = 0.5`."]
    assert change("m.f", **same | {"return": "str"}) == ["- `m.f`: `return` is `str`, was `int`."]
    assert change("m.f", x="int", y="float = 0.5", **{"return": "int"}) == ["- `m.f`: gone `loud`."]
    assert change("m.f", y="float = 0.5", x="int", loud=same["loud"], **{"return": "int"}) == [
        "- `m.f`: `x` stands elsewhere."
    ]
    assert change("m.C", b="int", a="int") == ["- `m.C`: new `b`; `a` stands elsewhere."]
    assert change("m.C.stop", self="") == ["- `m.C.stop`: new."]
    assert changes(BEFORE, {name: value for name, value in BEFORE.items() if not name.startswith("m.C")}) == [
        "- `m.C`: gone."
    ]


def test_the_section_is_written_into_unreleased_alone() -> None:
    text = f"# Changelog\n\n## [Unreleased]\n\n### Fixed\n\n- One.\n\n{HEADING}\n\n- `m.old`: gone.\n\n## [0.1.0]\n\n- Two.\n"
    lines = ["- `m.f`: new."]
    again = rewritten(text, lines, "0.1.0")
    assert listed(again) == lines
    assert again.count("## [0.1.0]\n\n- Two.\n") == again.count("- One.") == again.count(HEADING) == 1
    assert rewritten(again, lines, "0.1.0") == again
    assert listed(rewritten(again, [], "0.1.0")) == []
    assert HEADING not in rewritten(again, [], "0.1.0")
