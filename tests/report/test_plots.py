"""The plots of an inspected adapter, as files."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image

from mhr import AdapterConfig, attach
from mhr.adapters import save_adapter
from mhr.analysis.inspection import inspect_run
from mhr.report.plots import save_plots
from tests.models import randomise, tiny_model

TASKS = ["boolq", "rte", "wic", "cb"]


def saved(folder: Path, **settings) -> Path:
    model = tiny_model("t5")
    randomise(attach(model, AdapterConfig(**settings), TASKS))
    return save_adapter(model, folder, base="tiny")


def test_plots(tmp_path):
    found = inspect_run(saved(tmp_path / "a", n_heads=2, n_skills=3))
    files = save_plots(found, tmp_path / "plots")
    names = ["entropy", "layers", "routing", "similarity"]
    assert sorted(p.name for p in files) == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for file in files:
        if file.suffix == ".png":
            picture = matplotlib.image.imread(file)
            assert min(picture.shape[:2]) > 200
            assert (picture[0, 0] == 1).all()  # a light background
        else:
            text = file.read_text()
            assert ("boolq" in text) == (file.stem != "entropy")
            assert "<dc:date>" not in text  # equal plots are equal files


def test_nothing_to_plot_where_tasks_share_all(tmp_path):
    found = inspect_run(saved(tmp_path / "a", method="shared"))
    assert save_plots(found, tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()
