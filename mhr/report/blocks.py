"""What a section of a report is made of, and the material that sections read."""

from __future__ import annotations

from dataclasses import dataclass, field

from mhr.analysis.curves import Curve, learning_curve
from mhr.analysis.inspection import Inspection, inspect_run
from mhr.report.material import Material
from mhr.report.tables import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """svg: an <svg> element; caption: what it shows; wide: it keeps its size and scrolls where it does not fit."""

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Details:
    """Text that a reader opens."""

    title: str
    content: str


Block = str | Table | Figure | Details


@dataclass
class Section:
    """A heading with what stands under it, in order."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Looked:
    """The material with what had to be opened: label of a group -> its inspected adapter, and its curve."""

    material: Material
    inspections: dict[str, Inspection]
    curves: dict[str, Curve]

    @classmethod
    def at(cls, material: Material) -> Looked:
        """Open the runs of `material`. A run that is not done has no adapter yet and only its curve is shown."""
        inspections, curves = {}, {}
        for label, group in material.groups.items():
            if group.runs and group.runs[0].status == "done":
                inspections[label] = inspect_run(group.runs[0].path)
            curve = learning_curve(group.runs)
            if curve is not None:
                curves[label] = curve
        return cls(material, inspections, curves)
