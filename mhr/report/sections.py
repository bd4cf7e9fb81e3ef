"""The sections of a report, in their order. A section is a generator of blocks; the first line of its docstring is its heading."""

from __future__ import annotations

from mhr.report.blocks import Looked, Section
from mhr.report.material import Material
from mhr.report.sections_learnt import alignment, learning, routing, transfer
from mhr.report.sections_runs import costs, manifest
from mhr.report.sections_scores import plans, seen_and_unseen, summary, tasks

SECTIONS_IN_ORDER = (
    summary,
    plans,
    tasks,
    seen_and_unseen,
    learning,
    routing,
    alignment,
    transfer,
    costs,
    manifest,
)


def sections(material: Material) -> list[Section]:
    """Every section that has something to say."""
    looked = Looked.at(material)
    made = [
        Section(part.__name__, (part.__doc__ or "").strip().splitlines()[0].rstrip("."), list(part(looked)))
        for part in SECTIONS_IN_ORDER
    ]
    return [section for section in made if section.blocks]
