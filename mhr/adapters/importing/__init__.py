"""Banks that other programs, or a user's own loop, trained, made into runs. Each format has a module here, see `formats`."""

from __future__ import annotations

from mhr.adapters.importing import folders, mttl, soups  # each registers what it reads
from mhr.adapters.importing.formats import ForeignBank, formats
from mhr.adapters.importing.run import import_run

__all__ = ["ForeignBank", "formats", "import_run"]
