"""How each quantised layer is computed: a table of what every way needs of the card and of the weight.

W4A16 multiplies the dequantised weight; W4A4 is comfy-kitchen's SVDQuant in INT4; W8A8 quantises both sides by rows.
INT4 matrix instructions exist on NVIDIA sm_75 to sm_89 only: later chips emulate them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from ...kernels import registry
from .weight4 import E2M1, INT4, Weight4

W4A16, W4A4, INT8, FP8 = "w4a16", "w4a4", "w8a8 int8", "w8a8 fp8"


class Card(NamedTuple):
    """A device. chip: as the kernels' tables spell it (`sm_90`, `gfx942`), or `cpu`; each library: why it cannot be
    used there, empty where it can. kitchen: comfy-kitchen's CUDA kernels of SVDQuant; int_mm: torch._int_mm; scaled_mm:
    torch._scaled_mm with a scale for every row; triton: our kernel that unpacks."""

    chip: str
    kitchen: str = ""
    int_mm: str = ""
    scaled_mm: str = ""
    triton: str = ""

    @property
    def capability(self) -> int | None:
        """90 for sm_90; None where it is not NVIDIA's."""
        return int(self.chip[3:]) if self.chip.startswith("sm_") else None


class Needs(NamedTuple):
    """first, last: NVIDIA capabilities between which it runs; beyond: what later chips lack; not_on: chips on which it
    would be slow; library: a field of Card. grid, group: of the weight; zero points are for W4A16 only."""

    first: int
    last: int | None = None
    beyond: str = ""
    not_on: tuple[str, ...] = ()
    library: str = ""
    grid: str | None = None
    group: int | None = None


PATHS = {
    W4A4: Needs(80, 89, "no INT4 matrix instructions", library="kitchen", grid=INT4, group=64),
    # Before FP8: of smoothed inputs it loses less. B300 (sm_103) keeps a small part of the INT8 units of B200.
    INT8: Needs(89, not_on=("sm_103",), library="int_mm"),
    FP8: Needs(89, library="scaled_mm"),
}
# What each setting tries in turn; a card that can run none of them is refused.
COMPUTE = {"auto": (W4A4, W4A16), "w4a4": (W4A4,), "w8a8": (INT8, FP8), "w4a16": (W4A16,)}
NOT_YET = ("w4a8", "nvfp4")


def _kind(group: int, grid: str = INT4, zeros: bool = False) -> Weight4:
    codes = torch.empty(1, group // 2, dtype=torch.int8, device="meta")
    scale = torch.empty(1, 1, dtype=torch.bfloat16, device="meta")
    return Weight4(codes, scale, grid, zero=scale if zeros else None)


# The layers that 4-bit files hold, without numbers.
KINDS = {"INT4": _kind(64), "NVFP4": _kind(16, E2M1), "AWQ": _kind(64, zeros=True)}


class Choice(NamedTuple):
    """path: one of PATHS or W4A16; reason: why it is not one that was asked for or preferred, empty where it is."""

    path: str
    reason: str


def card_problem(path: str, card: Card) -> str:
    """Why the card cannot run the path; empty where it can."""
    if path == W4A16:
        return ""
    needs, capability = PATHS[path], card.capability
    if capability is None:
        return "runs on NVIDIA GPUs only"
    if capability < needs.first:
        return f"needs sm_{needs.first} or newer"
    if needs.last is not None and capability > needs.last:
        return f"{needs.beyond} on sm_{needs.last + 1} and newer"
    if card.chip in needs.not_on:
        return f"slow on {card.chip}"
    return getattr(card, needs.library)


def weight_problem(path: str, weight: Weight4) -> str:
    """Why a layer cannot take the path, on any card; empty where it can."""
    if path == W4A16:
        return ""
    needs = PATHS[path]
    if weight.zero is not None:
        return "zero points"
    if needs.grid not in (None, weight.grid):
        return f"grid {weight.grid}"
    if needs.group not in (None, weight.group):
        return f"groups of {weight.group}"
    if needs.group and (weight.unsigned_from or 0) % needs.group:
        return "signs mixed within a group"
    if needs.grid and weight.channel_scale is not None:
        return "channel scales"
    return ""


def usable(requested: str, card: Card) -> str:
    """The path that a plain layer takes on the card. Raises ValueError that names `compute`, the card and the reason
    where `requested`, a setting of COMPUTE or NOT_YET, cannot run there."""
    if requested in NOT_YET:
        raise ValueError(f"compute: {requested} is not available yet; choose one of {', '.join(COMPUTE)}")
    if requested not in COMPUTE:
        raise ValueError(f"compute: expected one of {', '.join((*COMPUTE, *NOT_YET))}, found {requested}")
    problems = {path: card_problem(path, card) for path in COMPUTE[requested]}
    for path, problem in problems.items():
        if not problem:
            return path
    reasons = "; ".join(problem if path == requested else f"{path}: {problem}" for path, problem in problems.items())
    raise ValueError(f"compute: {requested} cannot run on {card.chip} ({reasons}); choose auto or w4a16")


def choose(requested: str, weight: Weight4, card: Card) -> Choice:
    """How a layer with this weight is computed on the card under the setting `requested`. Raises as `usable` does."""
    path = usable(requested, card)
    if problem := weight_problem(path, weight):
        return Choice(W4A16, problem)
    preferred = COMPUTE[requested][0]
    return Choice(path, "" if path == preferred else f"{preferred}: {card_problem(preferred, card)}")


def summary(choices: Iterable[Choice]) -> str:
    """One line that says how many layers take which path, and why: `w4a4: 290; w4a16: 40 (zero points)`."""
    counts = Counter(choices)
    return "; ".join(
        f"{path}: {count}" + (f" ({reason})" if reason else "") for (path, reason), count in counts.most_common()
    )


@functools.cache
def card_of(device: torch.device | str) -> Card:
    """What a device has. The matrix products are tried once on small tensors: what torch takes differs from
    version to version."""
    device = torch.device(device)
    triton = registry.why_not("unpack_w4", "triton", device=device, dtype=torch.bfloat16, head_dim=None) or ""
    if device.type != "cuda":
        nothing = f"no GPU (device is {device.type})"
        return Card(device.type, nothing, nothing, nothing, triton)
    if torch.version.hip:
        chip = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    else:
        chip = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return Card(
        chip,
        _kitchen_problem(),
        _refusal(lambda: torch._int_mm(*_operands(device, torch.int8))),
        _refusal(lambda: _row_scaled(*_operands(device, torch.float8_e4m3fn))),
        triton,
    )


def _kitchen_problem() -> str:
    try:
        import comfy_kitchen
    except ImportError:
        return "comfy-kitchen is not installed"
    backend = comfy_kitchen.registry.list_backends()["cuda"]
    if not backend["available"]:
        return f"comfy-kitchen has no CUDA kernels here ({backend['unavailable_reason']})"
    if backend["disabled"]:
        return "comfy-kitchen's CUDA kernels are switched off (ComfyUI needs torch for CUDA 13)"
    if "scaled_mm_svdquant_w4a4" not in backend["capabilities"]:
        return "this comfy-kitchen has no SVDQuant kernels"
    return ""


def _operands(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = (torch.ones(32, 32, device=device).to(dtype) for _ in range(2))
    return left, right.T


def _row_scaled(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    scales = torch.ones(32, 1, device=left.device), torch.ones(1, 32, device=left.device)
    return torch._scaled_mm(left, right, *scales, out_dtype=torch.bfloat16)


def _refusal(product: Callable[[], torch.Tensor]) -> str:
    try:
        product()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return str(error).partition("\n")[0]
    return ""
