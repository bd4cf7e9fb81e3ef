"""Merging: from a bank with routing to one plain adapter, or from several adapters to one."""

from __future__ import annotations

from mhr.merging.combination import SPACES, Combination, Setting, all_settings, merge_methods, methods
from mhr.merging.dare import combine_dare
from mhr.merging.fisher import combine_fisher
from mhr.merging.mera import combine_mera
from mhr.merging.merge import DTYPES, FORMS, merge
from mhr.merging.report import REPORT_FILE, MergeReport, read_report
from mhr.merging.soups import combine_soup_greedy, combine_soup_uniform
from mhr.merging.task import merge_task
from mhr.merging.ties import combine_ties
from mhr.merging.uniform import combine_uniform, merge_uniform
from mhr.merging.weighted import combine_weighted, merge_weighted

__all__ = [
    "DTYPES",
    "FORMS",
    "REPORT_FILE",
    "SPACES",
    "Combination",
    "MergeReport",
    "Setting",
    "all_settings",
    "combine_dare",
    "combine_fisher",
    "combine_mera",
    "combine_soup_greedy",
    "combine_soup_uniform",
    "combine_ties",
    "combine_uniform",
    "combine_weighted",
    "merge",
    "merge_methods",
    "merge_task",
    "merge_uniform",
    "merge_weighted",
    "methods",
    "read_report",
]
