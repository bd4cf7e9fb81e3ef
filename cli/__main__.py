"""`python -m mhr_cli` is `mhr`."""

from .main import app

app(prog_name="mhr")
