"""Merging: from a bank with routing to one plain adapter, or from several adapters to one. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {
    "Combination": "mhr.merging.combination",
    "FORMS": "mhr.merging.methods",
    "MERGE_METHODS": "mhr.merging.methods",
    "MergeConfig": "mhr.merging.methods",
    "MergeMethod": "mhr.merging.methods",
    "MergeReport": "mhr.merging.report",
    "REPORT_FILE": "mhr.merging.report",
    "SPACES": "mhr.merging.methods",
    "combine_fisher": "mhr.merging.fisher",
    "combine_mera": "mhr.merging.mera",
    "combine_mera_activations": "mhr.merging.mera",
    "combine_model_stock": "mhr.merging.angles",
    "combine_sce": "mhr.merging.sce",
    "combine_search": "mhr.merging.soups",
    "combine_slerp": "mhr.merging.angles",
    "combine_soup_greedy": "mhr.merging.soups",
    "combine_soup_uniform": "mhr.merging.soups",
    "combine_task_vectors": "mhr.merging.task_vectors",
    "combine_uniform": "mhr.merging.averages",
    "combine_weighted": "mhr.merging.averages",
    "combines": "mhr.merging.combination",
    "merge": "mhr.merging.to_folder",
    "merge_each_task": "mhr.merging.each_task",
    "merge_methods": "mhr.merging.plan",
    "merge_task": "mhr.merging.averages",
    "merge_uniform": "mhr.merging.averages",
    "merge_weighted": "mhr.merging.averages",
    "read_report": "mhr.merging.report",
    "ExtractConfig": "mhr.merging.extract_settings",
    "extract": "mhr.merging.extraction",
    "find_weights": "mhr.weight_search",
    "serving_lines": "mhr.merging.serving",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.merging.angles import combine_model_stock, combine_slerp
    from mhr.merging.averages import combine_uniform, combine_weighted, merge_task, merge_uniform, merge_weighted
    from mhr.merging.combination import Combination, combines
    from mhr.merging.each_task import merge_each_task
    from mhr.merging.extract_settings import ExtractConfig
    from mhr.merging.extraction import extract
    from mhr.merging.fisher import combine_fisher
    from mhr.merging.mera import combine_mera, combine_mera_activations
    from mhr.merging.methods import FORMS, MERGE_METHODS, SPACES, MergeConfig, MergeMethod
    from mhr.merging.plan import merge_methods
    from mhr.merging.report import REPORT_FILE, MergeReport, read_report
    from mhr.merging.sce import combine_sce
    from mhr.merging.serving import serving_lines
    from mhr.merging.soups import combine_search, combine_soup_greedy, combine_soup_uniform
    from mhr.merging.task_vectors import combine_task_vectors
    from mhr.merging.to_folder import merge
    from mhr.weight_search import find_weights

__getattr__ = lazy(__name__, _HOME)
