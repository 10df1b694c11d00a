"""Capture files: what is written comes back, and nothing else is taken for one."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.bench import captures
from dit_accel.accel.bench.case import Case
from dit_accel.accel.bench.inputs import captured_inputs
from dit_accel.accel.bench.pattern_row import measure, plan_timed
from dit_accel.tests.bench.__main__ import main

LAYOUT = TokenLayout((2, 4, 8), prefix=3, suffix=2)
PROVENANCE = {"model": {"file": "m.safetensors", "sha256": "0"}}


def some(count: int, dtype=torch.float16) -> list[captures.Capture]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, LAYOUT.total, 64)
    return [
        captures.Capture(*(torch.randn(shape, generator=generator).to(dtype) for _ in "qkv"), LAYOUT, block, 0.5)
        for block in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_written_is_read(tmp_path, dtype):
    written = some(2, dtype)
    path = tmp_path / "c.safetensors"
    captures.write(path, written, PROVENANCE)
    found, provenance = captures.read(path)
    assert provenance == PROVENANCE
    assert [(c.block, c.sigma, c.layout) for c in found] == [(0, 0.5, LAYOUT), (1, 0.5, LAYOUT)]
    for a, b in zip(written, found, strict=True):
        assert a.sha256() == b.sha256()
        for x, y in zip(a[:3], b[:3], strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_tells_captures_apart():
    first, second = some(2)
    assert first.sha256() != second.sha256()
    assert first.sha256() != first._replace(q=first.k, k=first.q).sha256()


@pytest.mark.parametrize("content", ["nothing", "text", "other", "newer"])
def test_another_file_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "c.safetensors"
    if content == "text":
        path.write_text("no tensors here")
    elif content in ("other", "newer"):
        metadata = {} if content == "other" else {"format": captures.FORMAT, "version": "2"}
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    else:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"c\.safetensors: expected .*dit-accel/capture.*found"):
        captures.read(path)


def test_a_capture_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    captures.write(path, some(1), PROVENANCE)
    found, _ = captures.read(path)
    metadata = {
        "format": captures.FORMAT,
        "version": "1",
        "layout": json.dumps({"grid": [2, 4, 8], "prefix": 3, "suffix": 2}),
        "provenance": "{}",
    }
    q = found[0].q
    for tensors, calls, words in (
        ({"0.q": q}, [{"block": 0, "sigma": 0.5}], "found a broken one"),
        (
            {"0.q": q, "0.k": q.clone(), "0.v": q[:, :, :9].contiguous()},
            [{"block": 0, "sigma": 0.5}],
            r"\(1, 2, 9, 64\)",
        ),
        ({"0.q": q}, [], "at least one captured call, found none"),
    ):
        save_file(tensors, path, metadata={**metadata, "calls": json.dumps(calls)})
        with pytest.raises(ValueError, match=words):
            captures.read(path)


def test_the_bench_measures_on_the_captured_layout(tmp_path):
    path = tmp_path / "c.safetensors"
    captures.write(path, some(1), PROVENANCE)
    (inputs,) = captured_inputs(path)
    case = Case(inputs, device="cpu", backend="reference", repeats=1)
    row = measure(plan_timed(case, "svg2", Budget(top_p=1.0), "top_p 1", None), None)
    assert row["tokens"] == LAYOUT.total
    assert row["inputs"] == "m.safetensors block 0 sigma 0.5"
    assert row["inputs_sha256"] == some(1)[0].sha256()
    assert row["error"] < 1e-4


def test_the_command_names_a_bad_capture(tmp_path, capsys):
    path = tmp_path / "c.safetensors"
    path.write_text("no tensors here")
    assert main(["attention", "--capture", str(path)]) == 1
    assert "--capture: " in capsys.readouterr().err
    assert main(["attention", "--capture", str(tmp_path / "none")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
