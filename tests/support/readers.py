"""Every reader of files that the pack has: a good file for it, how it is read, and what is done with what it gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from dit_accel.accel.attention.cost import fits
from dit_accel.accel.attention.cost.costs import Terms
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.profiles.profile import Profile, read_profile, write_profile
from dit_accel.accel.bench import captures
from dit_accel.accel.bench.inputs import captured_inputs, stacked_inputs
from dit_accel.accel.cli import Problem, bench_attention
from dit_accel.accel.cli.row_file import Rows, shown
from dit_accel.accel.cli.row_file import read as read_rows
from dit_accel.accel.comfy import conditioning_files
from dit_accel.accel.dcae import checkpoint
from dit_accel.accel.dcae.config import CONFIGS, Config
from dit_accel.accel.dcae.keys import DIFFUSERS, MIT, from_ours
from dit_accel.accel.dcae.network import DCAE
from dit_accel.accel.dcae.preview import KIND as PREVIEW
from dit_accel.accel.dcae.preview import read_factors
from dit_accel.accel.files import write_json
from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.accel.quant.formats.reading import FOLDER_PARTS, read_quantised
from dit_accel.tests.support.comfy_quant_dialects import make_awq, make_layer
from dit_accel.tests.support.dcae_files import diffusers_settings
from dit_accel.tests.support.dcae_networks import VARIANTS, random_network
from dit_accel.tests.support.svdquant import pack_svdquant, quantise

MACHINE = {"device": "d", "torch": "t", "pack": "p"}
LAYOUT = TokenLayout((2, 3, 4), prefix=2, suffix=1)
PREVIEWED = CONFIGS["f32c32-in-1.0"]


class Reader(NamedTuple):
    """write(path): makes the good file, and others beside it where it needs some. read(path): reads it and does with
    the result what the pack does next. error: what a bad file raises. name: of the file."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    name: str = "a.json"
    error: type[Exception] = ValueError


def _write_profile(path: Path) -> None:
    rows = ((0.5, 0.6), (0.7, 1.0), (0.9, 0.9))
    numbers = {"density": (0.3, 0.2, 0.1), "error": (0.01, 0.02, 0.03)}
    about = {"pattern": "svg2", "model": "WanModel", "layers": (1, 2, 3), "calls": 4, "heads": 2, "floor": 0.05}
    target = {"target": "error", "target_value": 0.05, "met": True, "note": "n"}
    write_profile(path, Profile(**about, max_density=1.0, top_p=rows, **numbers, **target))


def _use_profile(path: Path) -> None:
    profile = read_profile(path)
    for layer in profile.layers:
        assert f"{sum(profile.row(layer)):.3f} {1.5 * profile.promised(layer):.3f}"


def _write_fit(path: Path) -> None:
    costs = Terms(*(1.5 for _ in Terms._fields))
    fits.write_fit(fits.Fit("card", {"torch": "2", "triton": "3"}, costs, path), [])


def _use_fit(path: Path) -> None:
    fit = fits.read_fit(path)
    assert sum(cost * 1e6 for cost in fit.costs) >= 0


def _write_factors(path: Path) -> None:
    factors = [[0.1, 0.2, 0.3]] * PREVIEWED.latent_channels
    write_json(path, PREVIEW, 1, {"autoencoder": PREVIEWED.name, "factors": factors, "bias": [0, 0.5, 1], "r2": 0.5})


def _use_factors(path: Path) -> None:
    for numbers in read_factors(path, PREVIEWED):
        torch.tensor(numbers, dtype=torch.float32)


def _write_rows(path: Path) -> None:
    timings = {f"{part}{again}_ms": 2.0 for part in ("plan", "kernel", "dense") for again in ("", "_again")}
    row = {"inputs": "i", "inputs_sha256": "0", "asked": "top_p 1", "pattern": "svg2", "valid": True, "remark": ""}
    rows = Rows(path, bench_attention.KIND, MACHINE, resume=False)
    rows.add({**row, **timings, "error": 0.1, "density": 0.5, "tokens": 9, "peak_bytes": 5})
    rows.add({**row, "valid": False, "remark": "skipped"})
    rows.add({**row, **timings, "asked": "everything", "error": 0.0})


def _use_rows(path: Path) -> None:
    rows = read_rows(path, "--json", bench_attention.KIND)["rows"]
    shown(bench_attention.show, rows, f"--json: {path}")


def _write_captures(path: Path) -> None:
    drawn = torch.randn(2, 3, 1, 2, LAYOUT.total, 4, generator=torch.Generator().manual_seed(0))
    calls = [captures.Capture(*call, LAYOUT, block, 0.5) for block, call in enumerate(drawn)]
    captures.write(path, calls, {"model": {"file": "x"}, "clip": "y"})


def _use_captures(path: Path) -> None:
    captured_inputs(path)
    stacked_inputs([path], 1)


def _write_conditioning(path: Path) -> None:
    options = {"pooled_output": torch.zeros(1, 4), "area": (1, 0.5, "x", None), "list": [torch.zeros(2), {"a": 1}]}
    conditioning_files.save(path, [[torch.zeros(1, 3, 4), options], [torch.ones(1, 2, 4), {}]])


@cache
def _nunchaku() -> dict[str, torch.Tensor]:
    """A Z-Image of one block in every list."""
    tensors = {"cap_embedder.1.weight": torch.ones(128, 64)}
    shapes = {
        "attention.to_qkv": (384, 128),
        "attention.to_out.0": (128, 128),
        "feed_forward.net.0.proj": (512, 128),
        "feed_forward.net.2": (128, 256),
    }
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        parts, _ = pack_svdquant(quantise(weight, torch.ones(shape[1]).bfloat16()), torch.ones(shape[0]))
        for blocks in ("layers", "noise_refiner", "context_refiner"):
            tensors |= {f"{blocks}.0.{name}.{part}": tensor.clone() for part, tensor in parts.items()}
    for blocks in ("layers", "noise_refiner", "context_refiner"):
        tensors |= {f"{blocks}.0.attention.norm_{which}.weight": torch.ones(64) for which in "qk"}
    return tensors


NUNCHAKU_METADATA = {
    "model_class": "NunchakuZImageTransformer2DModel",
    "config": json.dumps({"_class_name": "ZImageTransformer2DModel", "n_layers": 1}),
    "comfy_config": json.dumps({"model_class": "Lumina2", "model_config": {"dim": 128}}),
}


def _write_nunchaku(path: Path) -> None:
    save_file(_nunchaku(), path, metadata=NUNCHAKU_METADATA)


def _write_nunchaku_folder(path: Path) -> None:
    tensors = _nunchaku()
    for number, part in enumerate(FOLDER_PARTS):
        half = {name: x for name, x in tensors.items() if name.startswith("cap_") == bool(number)}
        save_file(half, path.with_name(part))
    path.write_text(NUNCHAKU_METADATA["config"])


def _write_comfy_quant(path: Path) -> None:
    model = {"norm.weight": torch.ones(4)}
    for name, (weight, bias) in {"a": make_layer(64, 64), "b": make_awq(64, 64)}.items():
        model |= {f"{name}.weight": weight, f"{name}.bias": bias}
    tensors, metadata = tensors_of(model)
    save_file(tensors, path, metadata=metadata)


def _settings(config: Config) -> str:
    return json.dumps({"_class_name": "AutoencoderDC", **diffusers_settings(config)})


@cache
def _dcae(name: str) -> dict[str, torch.Tensor]:
    form = MIT if name == "sana" else DIFFUSERS
    return from_ours(random_network(VARIANTS[name]).state_dict(), VARIANTS[name], form)


def _write_dcae(path: Path) -> None:
    metadata = {"config": _settings(VARIANTS["sana"]), "modelspec.title": "dc-ae"}
    save_file(_dcae("sana"), path, metadata=metadata)


def _write_dcae_settings(path: Path) -> None:
    """A file in diffusers' format, and its settings beside it."""
    save_file(_dcae("in"), path.with_name("m.safetensors"))
    path.write_text(_settings(VARIANTS["in"]))


def _write_dcae_pickle(path: Path) -> None:
    torch.save({"state_dict": _dcae("sana"), "step": 3}, path)


def _use_dcae(path: Path) -> None:
    config, tensors = checkpoint.read(path)
    network = DCAE(config)
    network.load_state_dict(tensors)
    network.decode(torch.zeros(1, config.latent_channels, 1, 2))


READERS = {
    "profile": Reader(_write_profile, _use_profile),
    "gate": Reader(_write_fit, _use_fit),
    "preview factors": Reader(_write_factors, _use_factors),
    "bench rows": Reader(_write_rows, _use_rows, error=Problem),
    "captures": Reader(_write_captures, _use_captures, "a.safetensors"),
    "conditioning": Reader(_write_conditioning, conditioning_files.load, "a.safetensors"),
    "nunchaku": Reader(_write_nunchaku, read_quantised, "a.safetensors"),
    "nunchaku's settings": Reader(_write_nunchaku_folder, lambda path: read_quantised(path.parent), "config.json"),
    "comfy_quant": Reader(_write_comfy_quant, read_quantised, "a.safetensors"),
    "DC-AE": Reader(_write_dcae, _use_dcae, "a.safetensors"),
    "DC-AE's settings": Reader(
        _write_dcae_settings, lambda path: _use_dcae(path.with_name("m.safetensors")), "config.json"
    ),
    "DC-AE in a pickle": Reader(_write_dcae_pickle, _use_dcae, "a.pth"),
}
