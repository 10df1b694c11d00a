"""`dit-accel doctor`: what was found on this machine, which operation runs where, and what to do about those that have
no kernel."""

from __future__ import annotations

import argparse
import platform
import re
import sys
from pathlib import Path

from ..headless.server import find_comfyui, missing_comfyui
from . import versions
from .operations import Trouble, try_operations
from .table import table

PACK = Path(__file__).parents[2]


def run(options: argparse.Namespace) -> int:
    """Prints the report; 0 where everything runs, else 1."""
    facts = [
        ("pack", f"{PACK} (version {versions.version('dit-accel') or 'not installed with pip'})"),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("torch", versions.version("torch") or "not installed: ComfyUI's requirements bring it"),
        ("triton", _triton()),
        *_torch_facts(),
        *_comfyui_facts(),
    ]
    troubles, lines = [], []
    if find_comfyui() is None:
        troubles.append(Trouble("no ComfyUI was found", "set COMFYUI_PATH to ComfyUI's folder"))
    if versions.version("torch"):
        tables, found = try_operations()
        troubles += found
        lines = ["", *tables, "", _compute(), ""]
    else:
        troubles.append(Trouble("torch is not installed", "install ComfyUI's requirements in this Python environment"))
    print("\n".join([*_aligned(facts), *lines, *_aligned(_verdict(troubles))]))
    return 1 if troubles else 0


def comfyui_version(comfyui: Path) -> str:
    """The version that a ComfyUI folder states, or `unknown version`."""
    file = comfyui / "comfyui_version.py"
    match = re.search(r'__version__ = "([^"]+)"', file.read_text("utf-8")) if file.is_file() else None
    return match[1] if match else "unknown version"


def _aligned(facts: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {value}" for name, value in facts]


def _verdict(troubles: list[Trouble]) -> list[tuple[str, str]]:
    if not troubles:
        return [("verdict", "everything runs"), ("next step", "none: the nodes can be used")]
    return [
        ("verdict", "not everything runs: " + "; ".join(trouble.what for trouble in troubles)),
        *(("next step", remedy) for remedy in dict.fromkeys(trouble.remedy for trouble in troubles)),
    ]


def _triton() -> str:
    installed = versions.triton()
    return "not installed" if installed is None else "{} ({})".format(*installed)


def _torch_facts() -> list[tuple[str, str]]:
    if not versions.version("torch"):
        return [(name, "unknown without torch") for name in ("C compiler", "Python.h", "GPU")]
    from ...kernels import registry

    return [
        ("C compiler", registry.c_compiler() or "none found: Triton needs one on Linux (install gcc)"),
        ("Python.h", str(registry.python_header() or "none found: Triton needs it on Linux (install python3-dev)")),
        ("GPU", _gpu()),
    ]


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use: sparse attention runs in plain PyTorch, where that is faster"
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(
            f"{properties.name}, capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    return f"{'; '.join(names)} ({toolkit})"


def _comfyui_facts() -> list[tuple[str, str]]:
    comfyui = find_comfyui()
    if comfyui is None:
        return [("ComfyUI", missing_comfyui())]
    links = [path for path in (comfyui / "custom_nodes").glob("*") if path.resolve() == PACK.resolve()]
    return [
        ("ComfyUI", f"{comfyui} ({comfyui_version(comfyui)})"),
        ("custom_nodes", f"holds this pack as {links[0].name}" if links else "does not hold this pack"),
    ]


def _compute() -> str:
    """Which path a layer of a 4-bit model takes under each setting of `compute`."""
    import torch

    from ..quant import compute

    card = compute.card_of("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for setting in (*compute.COMPUTE, *compute.NOT_YET):
        for kind, weight in compute.KINDS.items():
            try:
                choice = compute.choose(setting, weight, card)
                rows.append((setting, kind, choice.path, choice.reason))
            except ValueError as error:
                rows.append((setting, kind, "refused", str(error).removeprefix("compute: ")))
    return table(("compute", "4-bit layer", f"path on {card.chip}", "because"), _merged(rows))


def _merged(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """One row for all kinds of a setting that have the same answer."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for setting, kind, *answer in rows:
        kinds.setdefault((setting, *answer), []).append(kind)
    return [(setting, ", ".join(names), *answer) for (setting, *answer), names in kinds.items()]
