"""What trials decided, in a file of the repository: test seeds run with what is committed there, and with nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mhr.files import make_folder, read_json, write_json_atomically

FOLDER = Path(__file__).parent / "choices"


def best(trials: Mapping[float, float]) -> float:
    """The value with the highest score; of equal ones the lowest value."""
    return max(trials, key=lambda value: (trials[value], -value))


def freeze(file: Path, plan: Mapping[str, Any], chosen: Mapping[str, Any]) -> Path:
    """Write what was decided, with the plan of the trials that it comes from. A file that is there is refused:
    a choice is made once."""
    if file.exists():
        raise SystemExit(f"{file} is there already: choices are made once; delete it to make them again")
    make_folder(file.parent)
    return write_json_atomically(file, {"plan": plan, "chosen": chosen})


def frozen(file: Path, plan: Mapping[str, Any], *, committed: bool = True) -> dict[str, Any] | None:
    """What was decided; None where the file is not there yet.

    Ends the program where the file comes from trials of another plan and, with `committed`, where git does not hold it as it is.
    """
    if not file.is_file():
        return None
    held = read_json(file)
    if held.get("plan") != json.loads(json.dumps(plan)):
        raise SystemExit(
            f"{file} is of trials with another plan: delete it to make them again, or run the plan it is of"
        )
    if committed and not is_committed(file):
        raise SystemExit(f"{file} is not committed as it is: commit it, then the same command runs the test seeds")
    return dict(held["chosen"])


def settled(
    file: Path, plan: Mapping[str, Any], make: Callable[[], None], *, quick: bool = False
) -> dict[str, Any] | None:
    """What is frozen, for the test seeds to run with. Where nothing is, `make` runs the trials and freezes it, and None says that the
    file is to be committed first.

    quick  go on without a commit
    """
    chosen = frozen(file, plan, committed=not quick)
    if chosen is not None:
        return chosen
    make()
    print(f"Written: {file}")
    if not quick:
        print("Commit it; then the same command runs the test seeds.")
        return None
    return frozen(file, plan, committed=False)


def is_committed(file: Path) -> bool:
    """Whether the last commit of the repository around a file holds it as it is."""
    git = ["git", "-C", str(file.parent)]
    known = subprocess.run([*git, "ls-files", "--error-unmatch", file.name], capture_output=True).returncode == 0
    return (
        known
        and subprocess.run([*git, "diff", "--quiet", "HEAD", "--", file.name], capture_output=True).returncode == 0
    )
