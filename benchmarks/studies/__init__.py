from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"
"""Where studies write their tables and pages unless told otherwise: benchmarks/results."""
