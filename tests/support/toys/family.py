"""A model family of a maker that has no file yet: FLUX, a picture beside its text."""

import os
import re
import subprocess
import sys
from pathlib import Path

from dit_accel.tests.support.toys.steps import Step, at_the_end, change, new

NAME = "flux picture"
FILE, PLACE = "black_forest", "<maker>"
ROW = '''"""FLUX."""

from __future__ import annotations

from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, whole_patches


def _flux_layout(model, inputs: ForwardInputs) -> TokenLayout:
    """`[text | picture]`, the picture padded to whole patches."""
    sides = whole_patches(inputs.x.shape[2:], [model.patch_size] * 2)
    return TokenLayout((1, *sides), prefix=inputs.context.shape[1])


def _flux_block(model, options) -> int | None:
    index = options.get("block_index")
    if index is not None and options.get("block_type") == "single":
        return index + len(model.double_blocks)
    return index


FAMILIES = {
    "comfy.ldm.flux.model.Flux": Family(
        "FLUX",
        _flux_layout,
        lambda model, inputs: len(model.double_blocks) + len(model.single_blocks),
        _flux_block,
    ),
}
'''
CASE = '''"""Tiny FLUX."""

from __future__ import annotations

from dit_accel.tests.comfy.tiny.case import TEXT, Case

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": TEXT,
    "hidden_size": 256,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}

CASES = [Case("flux picture", "Flux", FLUX, (1, 16, 40, 46), 3, extra=20, prefix=20)]
'''


def _readme(before: str | None, tree: Path) -> str:
    command = [sys.executable, "-m", "dit_accel.tests.support.family_table"]
    environment = {**os.environ, "PYTHONPATH": str(tree.parent / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    table = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    text, count = re.subn(r"\| model \| \|\n\|---\|---\|\n(?:\|.*\n)+", lambda _: table, before)
    assert count == 1
    return text


_MAKERS = "    **black_forest.FAMILIES,\n"
STEPS = {
    "row": new("accel/comfy/families/black_forest.py", ROW),
    "import": change(
        "accel/comfy/families/__init__.py",
        (r"^from \. import cogvideo", "from . import black_forest, cogvideo"),
        at_the_end("FAMILIES: dict[str, Family] = {", "}", _MAKERS),
    ),
    "case": new("tests/comfy/tiny/black_forest.py", CASE),
    "case's import": change(
        "tests/comfy/tiny/__init__.py",
        (r"^from dit_accel\.tests\.comfy\.tiny import \(\n", r"\g<0>    black_forest,\n"),
        at_the_end("CASES = [", "]", "    *black_forest.CASES,\n"),
    ),
    "name": change("tests/comfy/test_families.py", at_the_end("NAMES = [", "]", f'    "{NAME}",\n')),
    "table": Step("README.md", _readme),
    "help": change("web/js/docs/DitAccelSparseAttention.md", (r"^Works on ", "Works on **FLUX**, ")),
    "description": change(
        "nodes/sparse_attention.py", (r"^            description=\(\n", r'\g<0>                "FLUX too. "\n')
    ),
}
FINDS = {
    "import": ("tests/comfy/test_families.py", "-k", f"density_one and ({NAME.replace(' ', ' and ')})"),
    "case's import": ("tests/comfy/test_families.py", "-k", "every_case_is_listed"),
    "name": ("tests/comfy/test_families.py", "-k", "every_case_is_listed"),
    "table": ("tests/unit/test_families.py",),
    "help": ("tests/unit/test_help.py",),
    "description": ("tests/unit/test_help.py",),
}
TESTS = (
    ("tests/unit/test_families.py", "tests/unit/test_help.py", "tests/unit/test_packaging.py"),
    ("tests/comfy/test_families.py", "-k", "(flux and picture) or every_case or every_row"),
)
