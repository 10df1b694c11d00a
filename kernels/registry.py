"""Which backend runs which operation: requirements as data, refusals as short strings.

A caller asks `choose` once per call and hands the answer to the operation as `backend`: `triton`, else `torch` where an
operation has a fast form in plain PyTorch. The reference is never chosen for it: it gives the same answer, but slowly,
so running it is the caller's decision.
"""

import functools
import importlib
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

NAMESPACE = "dit_accel"
HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)
AMD = ("gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")  # the generations with bf16 matrix instructions
INTERPRETED = (torch.float16, torch.float32)  # the interpreter multiplies the bit patterns of bfloat16


TRITONS = ((3, 3), (3, 9))  # the oldest and the newest with which all kernels are compiled in our tests


class Requirement(NamedTuple):
    """What a backend of an operation needs. None means "anything"."""

    dtypes: tuple[torch.dtype, ...] | None = None
    head_dims: tuple[int, ...] | None = None
    capability: tuple[int, int] = (
        8,
        0,
    )  # NVIDIA compute capability; Triton's lowest for bf16 matrix instructions


_ATTENTION = {
    "triton": Requirement(HALF, (64, 128)),
    "torch": Requirement(FLOATS),
    "reference": Requirement(FLOATS),
}
# What the backend torch does without: its attention puts keys in order itself, and has no 8 bits.
_LAYOUT = {name: _ATTENTION[name] for name in ("triton", "reference")}
REQUIREMENTS: dict[str, dict[str, Requirement]] = {
    "block_sparse_attention": _ATTENTION,
    "kmeans": _ATTENTION,
    "axis_tree": _ATTENTION,
    "block_mean": _ATTENTION,
    "compensation_error": _ATTENTION,
    "gather": _LAYOUT,
    "quantise": _LAYOUT,
    "row_attention": _ATTENTION,
    "group": {"triton": Requirement(), "torch": Requirement(), "reference": Requirement()},
    "top_p": dict.fromkeys(("triton", "torch", "reference"), Requirement((torch.float32,))),
    "unpack_w4": {"triton": Requirement(HALF), "reference": Requirement(FLOATS)},
    "rowwise": {"triton": Requirement(HALF), "reference": Requirement(FLOATS)},
    "relu_linear_attention": {"triton": Requirement(FLOATS, (16, 32)), "reference": Requirement(FLOATS)},
}


class Row(NamedTuple):
    """One line of `operations`: `reason` is empty when the backend is usable."""

    operation: str
    backend: str
    usable: bool
    reason: str


def interpreted() -> bool:
    """True when Triton runs in its Python interpreter (TRITON_INTERPRET, read as Triton reads it)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def triton_version() -> tuple[int, int]:
    """Major and minor version of the installed Triton: what older ones lack goes by it. (0, 0) where there is none."""
    try:
        found = importlib.import_module("triton").__version__
    except Exception:  # a broken installation raises whatever its libraries do
        return 0, 0
    major, minor = re.findall(r"\d+", found)[:2]
    return int(major), int(minor)


@functools.cache
def triton_problem(device_type: str) -> str | None:
    """Why Triton cannot run at all on this device type ("cuda", "cpu", ...), or None when it can."""
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError:
        return "triton is not installed" + (" (pip install triton-windows)" if sys.platform == "win32" else "")
    except Exception as error:  # a broken installation raises whatever its libraries do
        return f"triton cannot be imported ({error})"
    if interpreted():
        return None
    if device_type != "cuda":
        return f"no GPU (device is {device_type})"
    if not torch.cuda.is_available():
        return "no GPU (torch sees none)"
    # triton-windows brings its own compiler and headers; elsewhere Triton builds its launcher with what it
    # finds.
    if sys.platform != "win32":
        if c_compiler() is None:
            return "no C compiler (install gcc)"
        if python_header() is None:
            return "no Python headers (install python3-dev)"
    return None


@functools.cache
def import_problem(operation: str) -> str | None:
    """Why the file with the operation's kernels cannot be imported with this Triton, or None when it can."""
    try:
        importlib.import_module(f".triton.{operation}", __package__)
    except Exception as error:  # what a Triton lacks may raise anything, on import as in a decorator
        return f"its kernels cannot be imported: {_in_a_line(error)}"
    return None


@functools.cache
def trial_problem(operation: str, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Why the operation's kernels cannot be compiled and launched on this GPU, or None when they can: its `trial` is
    called once in a process. Triton keeps what it compiles on disk. Running out of memory says nothing, and raises."""
    try:
        importlib.import_module(f".{operation}", __package__).trial(device, dtype, head_dim)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Triton, the compilers of the GPU and of C, drivers and libraries raise anything
        return f"its kernels do not compile here: {_in_a_line(error)}"
    return None


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def c_compiler() -> str | None:
    """The compiler with which Triton builds its launchers: the variable CC, else the first that is found."""
    candidates = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def python_header() -> Path | None:
    """Python.h, which those launchers include."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    return header if header.is_file() else None


@functools.cache
def architecture(device: torch.device) -> str:
    """Name of the chip as the configuration tables spell it: "sm_90", "gfx942", or "interpreter"."""
    if interpreted():
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def nearest(table: Mapping[str, Any], name: str) -> Any:
    """The entry of `table` for architecture `name`; for an unlisted chip that of its nearest older relative.

    NVIDIA: the highest listed capability that is not above; AMD: the same generation (gfx9, gfx11, gfx12).
    """
    if name in table:
        return table[name]
    if name.startswith("sm_"):
        numbers = [int(key[3:]) for key in table if key.startswith("sm_")]
        return table[f"sm_{max(number for number in numbers if number <= int(name[3:]))}"]
    return next((row for key, row in table.items() if key[:-2] == name[:-2]), table["gfx1100"])


def why_not(
    operation: str, backend: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int | None
) -> str | None:
    """Why `backend` cannot run `operation` on such tensors, or None when it can. Never syncs.

    Where nothing else stands in Triton's way its kernels are compiled for the device once, so that what a Triton
    cannot compile is a reason too.
    """
    device = torch.device(device)
    needs = REQUIREMENTS[operation][backend]
    dtypes = needs.dtypes
    if backend == "triton":
        problem = triton_problem(device.type)
        if problem:
            return problem
        if interpreted():
            dtypes = INTERPRETED if dtypes in (HALF, FLOATS) else dtypes
        elif torch.version.hip:
            if not architecture(device).startswith(AMD):
                return f"AMD {architecture(device)} is not supported"
        elif torch.cuda.get_device_capability(device) < needs.capability:
            return "GPU older than sm_{}{}".format(*needs.capability)
    if dtypes is not None and dtype not in dtypes:
        return f"dtype {str(dtype).removeprefix('torch.')} is not supported"
    if needs.head_dims is not None and head_dim not in needs.head_dims:
        return f"head dimension {head_dim} is not supported"
    if backend != "triton":
        return None
    problem = import_problem(operation)
    if problem or interpreted():
        return problem
    try:
        return trial_problem(operation, device, dtype, head_dim)
    except torch.cuda.OutOfMemoryError:
        return None


def choose(
    operation: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int | None
) -> tuple[str | None, str]:
    """The fastest backend that can run, and "", else None and why Triton cannot. "reference" is never chosen here."""
    problem = functools.partial(why_not, operation, device=device, dtype=dtype, head_dim=head_dim)
    reason = problem("triton")
    if not reason:
        return "triton", ""
    if "torch" in REQUIREMENTS[operation] and not problem("torch"):
        return "torch", ""
    return None, reason


def operations(device: torch.device | str) -> list[Row]:
    """Whether each operation and backend is usable on `device`, at a dtype and head dimension it takes."""
    rows = []
    for operation, backends in REQUIREMENTS.items():
        for backend, needs in backends.items():
            reason = why_not(
                operation,
                backend,
                device=device,
                dtype=(needs.dtypes or HALF)[0],
                head_dim=(needs.head_dims or (None,))[-1],
            )
            rows.append(Row(operation, backend, reason is None, reason or ""))
    return rows


def custom_op(
    name: str, implementation: Callable[Parameters, Result], fake: Callable[..., Result]
) -> Callable[Parameters, Result]:
    """Registers a function as torch custom op `dit_accel::<name>` with the fake implementation `fake`, which may leave
    arguments unnamed that it does not need.

    The pack may be loaded twice in one process (installed, and by path from ComfyUI's folder), while torch refuses a
    second registration of a name: the second one gets the op that is there.
    """
    namespace = getattr(torch.ops, NAMESPACE)
    if not hasattr(namespace, name):
        op = torch.library.custom_op(f"{NAMESPACE}::{name}", implementation, mutates_args=())
        op.register_fake(fake)
    return getattr(namespace, name).default
