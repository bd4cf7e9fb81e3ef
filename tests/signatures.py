"""The signatures that users of the library rely on, and what became of them since the last release.

python -m tests.signatures          writes the section "Signatures" of CHANGELOG.md [Unreleased] again
python -m tests.signatures FILE     writes the present signatures, which is done once, when a version is released:
                                    tests/artifacts/vVERSION/signatures.json
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = ("mhr", "mhr.ops", "mhr.evaluation", "mhr.merging")
CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
ARTIFACTS = Path(__file__).parent / "artifacts"
HEADING = "### Signatures"

Parameters = dict[str, str]
Signatures = dict[str, Parameters]


def public_signatures() -> Signatures:
    """What each public name of `MODULES` takes and gives: "mhr.evaluation.evaluate" -> parameter -> annotation, default and kind.

    A class has its constructor's, and those of its public methods and properties; a constant the name of its type.
    """
    found: Signatures = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            if not name.startswith("_"):
                found |= _of(f"{module_name}.{name}", getattr(module, name))
    return dict(sorted(found.items()))


def _of(name: str, thing: Any) -> Signatures:
    if not callable(thing):
        return {name: {"type": type(thing).__name__}}
    if not inspect.isclass(thing):
        return {name: _signature(thing)}
    members = {f"{name}.{member}": signature for member, signature in _members(thing)}
    constructed = {} if issubclass(thing, Exception) else _signature(thing)
    return {name: constructed, **members}


def _members(cls: type) -> Iterator[tuple[str, Parameters]]:
    """The public members that this library gives a class: what it inherits of torch or of the language is not ours to keep."""
    seen = set()
    for owner in cls.__mro__:
        if owner.__module__.partition(".")[0] != "mhr":
            continue
        for member, value in vars(owner).items():
            if member.startswith("_") or member in seen:
                continue
            seen.add(member)
            if isinstance(value, property):
                yield member, {"return": str(inspect.signature(value.fget).return_annotation) if value.fget else ""}
            elif isinstance(value, (staticmethod, classmethod)):
                yield member, _signature(value.__func__)
            elif inspect.isfunction(value):
                yield member, _signature(value)


def _signature(function: Any) -> Parameters:
    signature = inspect.signature(function)
    empty = inspect.Signature.empty
    written = {}
    for parameter in signature.parameters.values():
        annotation = "" if parameter.annotation is empty else _annotation(parameter.annotation)
        default = "" if parameter.default is empty else f" = {_default(parameter.default)}"
        kind = "" if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else f" ({parameter.kind.description})"
        written[parameter.name] = f"{annotation}{default}{kind}"
    if signature.return_annotation is not empty and not inspect.isclass(function):
        written["return"] = _annotation(signature.return_annotation)
    return written


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    written = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in written else written


def changes(before: Signatures, now: Signatures) -> list[str]:
    """One line of the changelog for each name that came, went, or takes or gives something else."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        if name.rpartition(".")[0] in before.keys() ^ now.keys():
            continue  # a member comes and goes with its class
        if name not in before:
            lines.append(f"- `{name}`: new.")
        elif name not in now:
            lines.append(f"- `{name}`: gone.")
        elif difference := _difference(before[name], now[name]):
            lines.append(f"- `{name}`: {'; '.join(difference)}.")
    return lines


def _difference(before: Parameters, now: Parameters) -> list[str]:
    found = []
    if new := [key for key in now if key not in before]:
        found.append("new " + ", ".join(f"`{key}`" for key in new))
    if gone := [key for key in before if key not in now]:
        found.append("gone " + ", ".join(f"`{key}`" for key in gone))
    found += [
        f"`{key}` is `{now[key]}`, was `{before[key]}`" for key in before if key in now and now[key] != before[key]
    ]
    positions, stand = _positions(before), _positions(now)
    moved = [key for place, key in enumerate(positions) if key in stand and stand.index(key) != place]
    return [*found, f"`{moved[0]}` stands elsewhere"] if moved else found


def _positions(parameters: Parameters) -> list[str]:
    """The parameters that can be given without their name, in order."""
    return [key for key, value in parameters.items() if key != "return" and not value.endswith("(keyword-only)")]


def released() -> tuple[str, Signatures]:
    """The version and the signatures of the newest release that stored them."""
    files = ARTIFACTS.glob("v*/signatures.json")
    newest = max(files, key=lambda file: [int(part) for part in file.parent.name[1:].split(".")])
    return newest.parent.name[1:], json.loads(newest.read_text("utf-8"))


def listed(changelog: str) -> list[str]:
    """The lines of the section "Signatures" of [Unreleased]."""
    unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    section = (
        re.search(rf"^{HEADING}\n(.*?)(?=^### |\Z)", unreleased[1], re.MULTILINE | re.DOTALL) if unreleased else None
    )
    return [line for line in section[1].splitlines() if line.startswith("- ")] if section else []


def rewritten(changelog: str, lines: list[str], version: str) -> str:
    """The changelog with these lines for its section "Signatures", which stands last in [Unreleased]."""
    unreleased = re.search(r"^## \[Unreleased\]\n.*?(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if unreleased is None:
        raise SystemExit("CHANGELOG.md has no section [Unreleased]: begin it before the signatures change")
    kept = unreleased[0].partition(f"{HEADING}\n")[0].rstrip()
    section = "\n".join([HEADING, "", f"Of {', '.join(MODULES)}, since {version}:", "", *lines]) if lines else ""
    return changelog[: unreleased.start()] + f"{kept}\n\n{section}".rstrip() + "\n\n" + changelog[unreleased.end() :]


def _write(path: Path) -> None:
    lines = (f"  {json.dumps(name)}: {json.dumps(signature)}" for name, signature in public_signatures().items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _write(Path(sys.argv[1]))
    else:
        version, before = released()
        CHANGELOG.write_text(
            rewritten(CHANGELOG.read_text("utf-8"), changes(before, public_signatures()), version), encoding="utf-8"
        )
