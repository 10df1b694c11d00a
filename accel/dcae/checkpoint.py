"""Autoencoder files: found out, checked and read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files import mapped, need_file, need_whole
from ..messages import short
from .config import Config
from .detect import detect_format
from .hints import AUTO, gather
from .keys import Format, table, to_ours
from .runnable import need_runnable
from .wrappers import innermost, unwrapped

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Of a file, with what else a whole checkpoint holds; the largest autoencoder has 474.
MOST_TENSORS = 5_000


def read(path: str | Path, variant: str = AUTO) -> tuple[Config, dict[str, Tensor]]:
    """The configuration of an image DC-AE and its tensors by our names, in the dtypes of the file (fp32, bf16 or fp16).

    path: a safetensors file, which stays mapped into memory, or a pickle of tensors (.pth, .pt, .bin, .ckpt), of which
    nothing is executed; in MIT's or diffusers' format, as it is or wrapped (wrappers.py). variant: a name in
    config.CONFIGS, or `auto`. Raises ValueError naming the file, the tensor, what was expected and what was found;
    FileNotFoundError where there is no file.
    """
    path = Path(path)
    try:
        need_whole(path)
        tensors, metadata = _pickled(path) if path.suffix.lower() in PICKLES else mapped(path, MOST_TENSORS)
        tensors = unwrapped(tensors)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config, form, prefix = detect_format(shapes, gather(path, metadata, variant))
        inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        _check(inside, config, form)
        need_runnable(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, to_ours(inside, config, form)


def _pickled(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        need_file(path)
    except ValueError as error:
        raise ValueError(f"expected a pickle of tensors only, found {error}") from error
    try:
        with path.open("rb") as file:
            archive = file.read(2) == b"PK"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except FileNotFoundError:
        raise
    except Exception as error:  # Bytes that are no pickle fail in any way.
        raise ValueError(f"expected a pickle of tensors only, found another file ({_first_line(error)})") from error
    content = innermost(content)
    if not isinstance(content, dict):
        raise ValueError(f"expected tensors by name, found a {type(content).__name__}")
    if len(content) > MOST_TENSORS:
        raise ValueError(f"expected at most {MOST_TENSORS} tensors, found {len(content)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{name}: expected a tensor, found a {type(value).__name__}")
        _need_plain(name, value)
    return content, {}


def _need_plain(name: str, tensor: Tensor) -> None:
    """Raises ValueError for a tensor that is more, or less, than numbers one after another in memory: a pickle may hold
    one of few bytes and a shape of any size."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"{name}: expected a tensor of numbers in memory, found {short(tuple(tensor.shape))} without")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check(tensors: Mapping[str, Tensor], config: Config, form: Format) -> None:
    """Raises ValueError unless these are all tensors of the configuration and no others."""
    expected = {name: shape for theirs in table(config, form).values() for name, shape in theirs.items()}
    whose = f"of DC-AE {config.name} in {form.name}'s format"
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(
            f"{missing[0]}: expected this tensor {list(expected[missing[0]])} {whose}, found none{_more(missing)}"
        )
    extra = [name for name in tensors if name not in expected]
    if extra:
        raise ValueError(f"{extra[0]}: expected no such tensor {whose}, found one{_more(extra)}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {list(shape)} {whose}, found {list(tensor.shape)}")
        # Batch norm's counter is of no use but for training.
        if tensor.dtype not in FLOATS and not name.endswith("num_batches_tracked"):
            kinds = " or ".join(map(_dtype, FLOATS))
            raise ValueError(f"{name}: expected {kinds}, found {_dtype(tensor.dtype)}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
