"""Which operation runs where on this machine, and why not on the GPU: every kernel is compiled and launched once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from . import versions
from .table import table

if TYPE_CHECKING:
    from ...kernels.registry import Row

# Without their kernel these run in PyTorch, with the same result; the others are parts of sparse attention.
IN_PYTORCH = ("unpack_w4", "rowwise", "relu_linear_attention")
# Parts of sparse attention in Triton alone.
IN_TRITON = ("gather", "quantise")


class Trouble(NamedTuple):
    """what: what does not run, and why; remedy: what to do about it."""

    what: str
    remedy: str


def try_operations() -> tuple[list[str], list[Trouble]]:
    """A table for every kind of GPU, or for the CPU where torch sees no GPU, and what keeps operations off them."""
    import torch

    from ...kernels import registry

    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else ["cpu"]
    kinds = {torch.cuda.get_device_name(name) if name != "cpu" else name: name for name in reversed(names)}
    tables, troubles = [], []
    for kind, name in reversed(kinds.items()):
        rows = [row for row in registry.operations(name) if row.backend == "triton"]
        tables.append(table(("operation", f"runs on {kind}", "because"), [_cells(row) for row in rows]))
        troubles += troubles_of(kind, rows)
    if registry.interpreted():
        troubles.append(
            Trouble("TRITON_INTERPRET is set: kernels run in Triton's interpreter, for tests", "unset TRITON_INTERPRET")
        )
    return tables, troubles


def _cells(row: Row) -> tuple[str, str, str]:
    if row.usable:
        return row.operation, "as a kernel", ""
    where = "in PyTorch, where that is faster"
    if row.operation in IN_PYTORCH:
        where = "in PyTorch"
    elif row.operation in IN_TRITON:
        where = "not, and is not needed without"
    return row.operation, where, row.reason


def troubles_of(device: str, rows: Sequence[Row]) -> list[Trouble]:
    """One for each reason why kernels do not run on `device`."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if not row.usable:
            reasons.setdefault(row.reason, []).append(row.operation)
    return [
        Trouble(
            f"{len(names)} of {len(rows)} operations have no kernel on {device}"
            + (f" ({', '.join(names)})" if len(names) < len(rows) else "")
            + f": {reason}",
            _remedy(reason),
        )
        for reason, names in reasons.items()
    ]


def _remedy(reason: str) -> str:
    from ...kernels import registry

    if reason.startswith("triton is not installed"):
        return "install Triton in this Python environment: pip install triton (on Windows: triton-windows)"
    if reason.startswith("no C compiler"):
        return "install a C compiler (gcc), then run `dit-accel doctor` again"
    if reason.startswith("no Python headers"):
        return "install the Python headers (python3-dev), then run `dit-accel doctor` again"
    if reason.startswith(("triton cannot be imported", "its kernels")):
        oldest, newest = (".".join(map(str, version)) for version in registry.TRITONS)
        found = versions.triton()
        return (
            f"use Triton {oldest} to {newest}" + (f" (found {found[0]})" if found else "") + "; if it is one of these, "
            "report this output"
        )
    return "nothing to install: sparse attention runs in plain PyTorch, and stays dense where that is faster"
