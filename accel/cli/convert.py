"""`dit-accel convert`: a 4-bit model of any format that the pack reads, as one file in ComfyUI's convention."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..version import PACK_VERSION
from ..writing import replacing
from . import Problem
from .needs import need_writable_file

if TYPE_CHECKING:
    from torch import Tensor

# What a source's header says about a packing that the new file does not have.
PACKING = ("quantization_config", "_quantization_metadata")


def run(options: argparse.Namespace) -> int:
    """Writes options.target from options.source and prints what is in it. Raises Problem where the source is no 4-bit
    model, or the target cannot be written; then a target that was there is as it was."""
    source, target = options.source, options.target
    if not source.exists():
        raise Problem(f"SOURCE: expected a file or a folder, found nothing at {source}")
    need_writable_file("TARGET", target)
    if target.exists() and any(target.samefile(file) for file in _files(source)):
        raise Problem(f"TARGET: expected another file than the source, found {target}")

    from ..quant.formats.comfy_quant import OURS
    from ..quant.formats.comfy_quant_writer import bias_of, format_of, tensors_of
    from ..quant.formats.reading import read_quantised
    from ..quant.weight4 import Weight4

    try:
        model, metadata = read_quantised(source)
    except (ValueError, OSError) as error:
        raise Problem(str(error)) from error
    layers = {key.removesuffix(".weight"): value for key, value in model.items() if isinstance(value, Weight4)}
    if not layers:
        raise Problem(f"{source}: expected 4-bit layers, found none: there is nothing to convert")
    kinds = {layer: format_of(weight, bias_of(model, layer)) for layer, weight in layers.items()}
    tensors, header = tensors_of(model)
    kept = {key: value for key, value in metadata.items() if key not in PACKING}
    before = sum(file.stat().st_size for file in _files(source))
    _write(target, tensors, {**kept, **header, "pack": PACK_VERSION, "converted_from": source.name})

    print(f"{target}: {len(layers)} 4-bit layers")
    for kind in sorted(set(kinds.values())):
        print(f"  {list(kinds.values()).count(kind)} {kind}")
    print(f"size: {_size(before)} before, {_size(target.stat().st_size)} after")
    own = [layer for layer, kind in kinds.items() if kind == OURS]
    if own:
        print("Only this pack reads these layers, for which the shared formats have no words:")
        print("\n".join(f"  {layer}" for layer in own))
    return 0


def _write(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(target) as partial:
            # save_file writes from the tensors' own memory, but makes a file which only its owner may read.
            partial.touch()
            mode = partial.stat().st_mode
            save_file(tensors, partial, metadata=metadata)
            partial.chmod(mode)
    except (SafetensorError, OSError) as error:
        raise Problem(f"TARGET: cannot write {target}: {error}") from error


def _files(source: Path) -> list[Path]:
    return sorted(source.glob("*.safetensors")) if source.is_dir() else [source]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
