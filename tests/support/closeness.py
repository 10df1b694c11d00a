"""How near two results are, measured against the size of what is compared and against the rounding of its dtype.

Another processor, number of threads or library adds in another order, and then results differ by some roundings of
their largest numbers. An absolute bound would hold for one size of numbers only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Roundings by which the result of a whole network may differ where sums are made in another order.
NETWORK = 128


def distance(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """The largest difference as a part of the largest magnitude in `expected`; infinite where one of the two is NaN
    or has another infinity. Both may be of any dtype; shapes must be equal."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape, f"expected shape {tuple(expected.shape)}, found {tuple(found.shape)}"
    found, expected = found.detach().double(), expected.detach().double().to(found.device)
    if not found.numel():
        return 0.0
    finite = torch.isfinite(found) & torch.isfinite(expected)
    if not (finite | (found == expected)).all():
        return float("inf")
    largest = torch.where(finite, found - expected, 0.0).abs().max().item()
    size = torch.where(finite, expected, 0.0).abs().max().item()
    return largest / size if size else float("inf" if largest else 0.0)


def assert_close(
    found: Tensor | np.ndarray,
    expected: Tensor | np.ndarray,
    *,
    units: float = 16,
    dtype: torch.dtype | None = None,
    what: str = "",
) -> None:
    """At most `units` roundings of `dtype` (its eps) at the largest magnitude in `expected`. Without dtype it is the
    coarser of the two that are compared."""
    if dtype is None:
        dtype = max((torch.as_tensor(x).dtype for x in (found, expected)), key=lambda kind: torch.finfo(kind).eps)
    eps = torch.finfo(dtype).eps
    difference = distance(found, expected)
    assert difference <= units * eps, (
        f"{what or 'result'}: {difference:.3g} of the largest expected number, that is {difference / eps:.4g} roundings"
        f" of {dtype}; at most {units:g} are allowed"
    )
