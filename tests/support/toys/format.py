"""A format of 4-bit models: codes and scales under ComfyUI's names."""

from dit_accel.tests.support.toys.steps import change, new

NAME = "plain4"
FILE, PLACE = NAME, "<name>"
READER = '''"""plain4: `<layer>.codes4` int8 [N, K / 2] and `<layer>.scale4` [K / G, N] under ComfyUI's names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..weight4 import Weight4
from .checks import FLOATS, expect, expect_parts

CODES, SCALE = "codes4", "scale4"


def detect(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether a file's tensors are in this format."""
    return any(key.endswith(f".{CODES}") for key in tensors)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> dict[str, Tensor | Weight4]:
    """The tensors of the file `name`, 4-bit layers as Weight4. Raises ValueError naming file, layer and tensor."""
    found: dict[str, Tensor | Weight4] = dict(tensors)
    try:
        for layer in [key.rpartition(".")[0] for key in tensors if key.endswith(f".{CODES}")]:
            parts = {key.rpartition(".")[2]: tensors[key] for key in tensors if key.rpartition(".")[0] == layer}
            expect_parts(layer, tuple(parts), (CODES, SCALE), ("bias",))
            codes, scale = parts[CODES], parts[SCALE]
            expect(f"{layer}.{CODES}", codes, (torch.int8,), None, None)
            expect(f"{layer}.{SCALE}", scale, FLOATS, codes.shape[1] // 32, codes.shape[0])
            del found[f"{layer}.{CODES}"], found[f"{layer}.{SCALE}"]
            found[f"{layer}.weight"] = Weight4(codes, scale)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return found
'''
TEST = '''"""plain4: what is read is the plain layer, and broken files are refused."""

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.cli.main import main
from dit_accel.accel.quant.formats.reading import read_quantised
from dit_accel.accel.quant.weight4 import dequantise, pack_nibbles


def layer():
    random = torch.Generator().manual_seed(0)
    values = torch.randint(-7, 8, (16, 128), generator=random)
    scale = torch.rand(2, 16, generator=random) + 0.5
    plain = values * scale.T.repeat_interleave(64, dim=1)
    return plain, {"blocks.0.to_q.codes4": pack_nibbles(values), "blocks.0.to_q.scale4": scale}


def test_what_is_read_is_the_plain_layer(tmp_path):
    plain, tensors = layer()
    save_file({**tensors, "norm.weight": torch.ones(16)}, tmp_path / "m.safetensors")
    found, _ = read_quantised(tmp_path / "m.safetensors")
    assert set(found) == {"blocks.0.to_q.weight", "norm.weight"}
    torch.testing.assert_close(dequantise(found["blocks.0.to_q.weight"]), plain)


def test_it_is_converted(tmp_path):
    plain, tensors = layer()
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file(tensors, source)
    assert main(["convert", str(source), str(target)]) == 0
    found, _ = read_quantised(target)
    torch.testing.assert_close(dequantise(found["blocks.0.to_q.weight"]), plain)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("scale4", None),
        ("scale4", lambda tensor: tensor[:1]),
        ("scale4", lambda tensor: tensor * float("nan")),
        ("codes4", lambda tensor: tensor.short()),
    ],
)
def test_a_broken_file_is_refused(tmp_path, part, change):
    path, name = tmp_path / "m.safetensors", f"blocks.0.to_q.{part}"
    _, tensors = layer()
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = change(tensor)
    save_file(tensors, path)
    with pytest.raises(ValueError) as refusal:
        read_quantised(path)
    assert str(refusal.value).startswith(f"{path}: ") and name in str(refusal.value)
'''
STEPS = {
    "reader": new(f"accel/quant/formats/{NAME}.py", READER),
    "row": change(
        "accel/quant/formats/reading.py",
        (r"^from \. import comfy_quant, nunchaku$", r"\g<0>, plain4"),
        (r'^    Reader\("comfy_quant".*\n', r'\g<0>    Reader("plain4", plain4.detect, plain4.read),\n'),
    ),
    "test": new(f"tests/unit/test_{NAME}.py", TEST),
    "help": change(
        "web/js/docs/DitAccelLoadSVDQuant.md", (r"^  - comfy_quant files with", "  - plain4 files;\n\\g<0>")
    ),
    "description": change(
        "nodes/load_svdquant.py", (r"^            description=\(\n", r'\g<0>                "plain4 files too. "\n')
    ),
    "command": change("accel/cli/main.py", ("a nunchaku or comfy_quant file,", "nunchaku, comfy_quant, plain4,")),
    "readme": change(
        "README.md", (r"from nunchaku or comfy_quant files", "from nunchaku, comfy_quant or plain4 files")
    ),
}
FINDS = {
    "row": (f"tests/unit/test_{NAME}.py",),
    "help": ("tests/unit/test_help.py",),
    "description": ("tests/unit/test_help.py",),
    "command": ("tests/unit/test_help.py",),
    "readme": ("tests/unit/test_help.py",),
}
TESTS = (
    (f"tests/unit/test_{NAME}.py", "tests/unit/test_quantised_files.py"),
    ("tests/unit/test_help.py", "tests/unit/test_packaging.py"),
)
