"""`mhr demo`: the whole job on the built-in backbone and tasks, in a few minutes."""

from __future__ import annotations

from pathlib import Path

from . import options

EXAMPLES = """**Examples**

mhr demo

mhr demo --output runs/demo --resume
"""


def demo(
    output: options.Output = Path("runs/demo"),
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Show the whole job: pretrain, adapt to tasks never seen, merge, evaluate. Nothing is downloaded.

    Ends with a table of held-out tasks against ways to adapt, and the folder with everything that was written.
    """
    raise NotImplementedError
