"""Merging: from a bank with routing to one plain adapter, from several adapters to one, or into the weights of the base model."""

from __future__ import annotations

from mhr.checkpoint.plain import LoraFactors, PlainAdapter, PlainIA3, PlainLora, attach_plain, plain_checkpoint
from mhr.merging.collapse import collapse, merge_methods
from mhr.merging.combination import SPACES, Combination, methods
from mhr.merging.dare import combine_dare
from mhr.merging.fisher import combine_fisher
from mhr.merging.fold import fold_into
from mhr.merging.fold_bank import fold_bank
from mhr.merging.inputs import find_adapter
from mhr.merging.mera import combine_mera
from mhr.merging.merge import DTYPES, FORMS, merge
from mhr.merging.report import REPORT_FILE, MergeReport, read_report
from mhr.merging.soup_greedy import combine_soup_greedy
from mhr.merging.soup_uniform import combine_soup_uniform
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
    "LoraFactors",
    "MergeReport",
    "PlainAdapter",
    "PlainIA3",
    "PlainLora",
    "attach_plain",
    "collapse",
    "combine_dare",
    "combine_fisher",
    "combine_mera",
    "combine_soup_greedy",
    "combine_soup_uniform",
    "combine_ties",
    "combine_uniform",
    "combine_weighted",
    "find_adapter",
    "fold_bank",
    "fold_into",
    "merge",
    "merge_methods",
    "merge_task",
    "merge_uniform",
    "merge_weighted",
    "methods",
    "plain_checkpoint",
    "read_report",
]
