"""Routed layers, and how they are put on a model."""

from mhr.layers.attach import attach, detach
from mhr.layers.bank import AdapterBank
from mhr.layers.disabled import disabled
from mhr.layers.routed import RoutedLayer
from mhr.layers.routed_bias import RoutedBias
from mhr.layers.routed_bottleneck import RoutedBottleneck
from mhr.layers.routed_film import RoutedFilm
from mhr.layers.routed_ia3 import RoutedIA3
from mhr.layers.routed_linear import RoutedLinear
from mhr.layers.routed_recurrent import RoutedRecurrent

__all__ = [
    "AdapterBank",
    "RoutedBias",
    "RoutedBottleneck",
    "RoutedFilm",
    "RoutedIA3",
    "RoutedLayer",
    "RoutedLinear",
    "RoutedRecurrent",
    "attach",
    "detach",
    "disabled",
]
