"""What a study has found before it is finished, in a file of the repository: another machine goes on from there."""

from __future__ import annotations

from pathlib import Path

from mhr.files import make_folder, read_json, write_json_atomically

from .stages import STATE


def take_up(file: Path, output: Path) -> None:
    """Put the states that the file holds into those folders of `output` that have none. What they were found with, runs and adapted
    checkpoints, is not there then, and is made again where it is needed."""
    if not file.is_file():
        return
    for folder, state in read_json(file).items():
        place = make_folder(output / folder) / STATE
        if not place.exists():
            write_json_atomically(place, state)


def hold(file: Path, output: Path, folders: list[str]) -> None:
    """Write the states of those folders of `output` that have one; without any there is no file."""
    found = {folder: output / folder / STATE for folder in folders}
    states = {folder: read_json(state) for folder, state in found.items() if state.is_file()}
    if states:
        make_folder(file.parent)
        write_json_atomically(file, states)
    else:
        file.unlink(missing_ok=True)
