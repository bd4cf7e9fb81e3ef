"""`mhr inspect`: what a run learnt about its tasks."""

from __future__ import annotations

from . import options

EXAMPLES = """**Examples**

mhr inspect runs/mhr

mhr inspect runs/mhr --output plots
"""


def inspect(
    run: options.Run,
    output: options.OptionalOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Show a run's parameters, its routing as a heat map, entropy per layer, and which tasks route alike."""
