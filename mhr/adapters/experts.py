"""The LoRAs that runs, banks and folders stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.find import find_adapters
from mhr.adapters.open import needs_task, open_bank, open_plain, open_skills, plain_of
from mhr.adapters.plain import PlainAdapter
from mhr.errors import ConfigError, MergeError


def gather(paths: Sequence[str | Path], experts: str | None = None) -> list[PlainAdapter]:
    """The LoRAs that paths stand for, in their order: a LoRA is one, a bank has those of its tasks or skills ("tasks" or "skills"; None: tasks, of a
    bank that does the same for all of them skills).

    Raises CheckpointError for what is no adapter, ConfigError for `experts` where no input is a bank.
    """
    found: list[PlainAdapter] = []
    banks = 0
    for path in [one for given in paths for one in find_adapters(given)]:
        bank = open_bank(path)
        if bank is None or _is_one(bank):
            found.append(open_plain(path))
            continue
        banks += 1
        by_task = experts == "tasks" or (experts is None and bank.config.routing.needs_tasks)
        found += [plain_of(bank, task) for task in bank.tasks] if by_task else open_skills(bank)
    if not found:
        raise MergeError("no LoRA is named: expected a run, or several adapter folders")
    if experts is not None and not banks:
        raise ConfigError(f"experts is {experts!r}, but no input is a bank of several LoRAs: leave it out")
    return found


def _is_one(bank: AdapterCheckpoint) -> bool:
    """Whether a bank is one adapter, for all tasks and tokens."""
    by_token = bank.config.routing.by_token
    return bank.config.skills_for(len(bank.tasks)) == 1 and not needs_task(bank) and not by_token


def names_of(sources: Sequence[PlainAdapter]) -> list[str]:
    """A name for each LoRA: its task, or else its folder; with a number where several have one."""
    names = [source.task or _folder(source) for source in sources]
    counted = Counter(names)
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if counted[name] == 1 else f"{name} {seen[name]}")
    return found


def _folder(source: PlainAdapter) -> str:
    path, comma, rest = source.name.partition(", ")
    return rest if comma else (Path(path).parent if Path(path).name == "adapter" else Path(path)).name
