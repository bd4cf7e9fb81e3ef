"""The one table of tolerances, and how an error is measured.

The truth is a reference in float64 on the rounded inputs. An error is one number per named tensor:
RMS(difference) / RMS(truth). A native kernel must also be no worse than twice the same-dtype reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest RMS error by dtype of the activations: about four times the unit roundoff, for sums that are held in float32.
LIMITS = {
    torch.float64: 1e-13,
    torch.float32: 2.5e-6,
    torch.bfloat16: 1.2e-2,
    torch.float16: 1.5e-3,
}
DTYPES = tuple(LIMITS)


def rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0


def error(found: Tensor, truth: Tensor) -> float:
    """RMS(found - truth) / RMS(truth); not-a-number and infinity count as infinitely wrong."""
    assert found.shape == truth.shape, f"shape {tuple(found.shape)}, expected {tuple(truth.shape)}"
    difference = rms(found.detach().double() - truth.detach().double())
    if difference == 0.0:
        return 0.0
    value = difference / max(rms(truth.detach()), 1e-30)
    return value if value == value else float("inf")


def assert_close(
    found: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype, same: dict[str, Tensor] | None = None
) -> None:
    """Holds every named tensor to the limit of `dtype`, and to twice the error of the same-dtype reference `same`."""
    assert found.keys() == truth.keys()
    faults = []
    for name, tensor in found.items():
        wrong = error(tensor, truth[name])
        limit = LIMITS[dtype]
        if same is not None and tensor.numel() >= 8:
            # A reference may be exact by luck, in a few numbers above all: about two roundings are always allowed.
            limit = min(limit, max(2 * error(same[name], truth[name]), LIMITS[dtype] / 2))
        if not wrong <= limit:
            faults.append(f"{name}: {wrong:.2e} > {limit:.2e}")
    assert not faults, ", ".join(faults)
