"""Conditioning files: whatever a text encoder gives comes back as it was, and nothing else is taken for one."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_accel.accel.comfy import conditioning_files as files
from dit_accel.accel.version import PACK_VERSION


@pytest.fixture
def rich(comfy):
    """Two entries with everything that core's encoders put into them."""
    from comfy.nested_tensor import NestedTensor

    generator = torch.Generator().manual_seed(0)

    def rand(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(dtype)

    shared = rand(2, 8)
    return [
        [
            rand(1, 7, 16, dtype=torch.bfloat16),
            {
                "pooled_output": shared,
                "attention_mask": torch.tensor([[1, 1, 0]]),
                "guidance": 3.5,
                "reference_latents": [rand(1, 4, 2, 2), rand(1, 4, 3, 3, dtype=torch.float16)],
                "area": (0.5, 0.5, "percentage", None),
                "add_noise": True,
                "numbers": [float("inf"), -0.5, 2**70, True, None],
                "scalar": torch.tensor(3),
                "empty": torch.zeros(0, 4),
                "flags": torch.tensor([True, False]),
                "small": rand(4).to(torch.float8_e4m3fn),
                "weights": torch.nn.Parameter(rand(2)),
                "unprocessed": {"tokens": [1, 2], "text": "ein Fuchs läuft"},
                "nested_output": NestedTensor([rand(1, 3, 4), rand(1, 5, 2, dtype=torch.float16)]),
                # Views: not contiguous, and one memory twice.
                "transposed": shared.T,
                "same again": shared,
            },
        ],
        [NestedTensor([rand(1, 2, 4), rand(1, 6, 4)]), {"pooled_output": None}],
    ]


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found.float(), expected.float())
        return
    assert type(found) is type(expected)
    if getattr(expected, "is_nested", False):
        assert_same(found.unbind(), expected.unbind())
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


def test_everything_comes_back(rich, tmp_path):
    path = tmp_path / "a folder" / "c.safetensors"
    files.save(path, rich)
    assert_same(files.load(path), rich)
    assert list(path.parent.iterdir()) == [path]


def test_the_file_says_what_it_is(rich, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "c.safetensors"
    files.save(path, rich)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"], metadata["pack"]) == (files.FORMAT, "1", PACK_VERSION)


class ControlNet:
    pass


class Pair(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (ControlNet(), "ControlNet"),
        ({"deep": [1, ControlNet()]}, "ControlNet"),
        ({1: "a key that is no text"}, "a dictionary with the key 1"),
        (Pair(1, 2), "Pair"),
        (torch.zeros(2, dtype=torch.complex64), "a Tensor of torch.complex64"),
        (torch.zeros(2, 2).to_sparse(), "a Tensor of torch.float32, torch.sparse_coo"),
    ],
)
def test_what_is_no_data_is_refused_by_name(comfy, tmp_path, value, found):
    with pytest.raises(ValueError, match=rf"conditioning\[0\]\[1\]\['control'\].*found {found}"):
        files.save(tmp_path / "c.safetensors", [[torch.zeros(1, 2, 3), {"control": value}]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("conditioning", [[[None, {}]], [[torch.zeros(1), {}, 3]], [[torch.zeros(1)]], [[{}, {}]]])
def test_what_is_no_conditioning_is_not_written(comfy, tmp_path, conditioning):
    with pytest.raises(ValueError, match="expected a list of pairs of a tensor and a dictionary"):
        files.save(tmp_path / "c.safetensors", conditioning)
    assert not list(tmp_path.iterdir())


def test_pairs_may_be_tuples(comfy, tmp_path):
    files.save(tmp_path / "c.safetensors", ((torch.ones(1), {"pooled_output": None}),))
    assert_same(files.load(tmp_path / "c.safetensors"), [[torch.ones(1), {"pooled_output": None}]])


def test_changing_the_file_does_not_change_what_was_loaded(rich, tmp_path):
    path = tmp_path / "c.safetensors"
    files.save(path, rich)
    loaded = files.load(path)
    with path.open("r+b") as file:
        file.seek(-64, 2)
        file.write(b"\xff" * 64)
    assert_same(loaded, rich)


def test_a_failed_write_keeps_the_old_file(comfy, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    old = [[torch.zeros(1, 2, 3), {}]]
    files.save(path, old)

    write = Path.write_bytes

    def fail(target, content):
        write(target, content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        files.save(path, [[torch.ones(1, 2, 3), {}]])
    assert list(tmp_path.iterdir()) == [path]
    assert_same(files.load(path), old)


def rewrite(path, **changes):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, **changes.pop("tensors", {})}, path, metadata={**metadata, **changes})


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.write_bytes(b""), "found a broken one"),
        (lambda path: path.write_text("{}"), "found a broken one"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "found a broken one"),
        (lambda path: save_file({"x": torch.zeros(1)}, path), "found a safetensors file of another kind"),
        (lambda path: rewrite(path, format="dit-accel/profile"), "found the format dit-accel/profile"),
        (lambda path: rewrite(path, version="2"), "found version 2"),
        (lambda path: rewrite(path, tree="[1, "), "found a broken tree"),
        (lambda path: rewrite(path, tree=json.dumps({"list": [{"tensor": "00009"}]})), "found a broken tree"),
        (lambda path: rewrite(path, tree=json.dumps({"set": []})), "found a broken tree"),
        (lambda path: rewrite(path, tree=json.dumps(["list"])), "found a broken tree"),
        (lambda path: rewrite(path, tree=json.dumps({"list": "ab"})), "found a broken tree"),
        (lambda path: rewrite(path, tree=json.dumps({"nested": []})), "found a broken tree"),
        (lambda path: rewrite(path, tree=json.dumps({"nested": [{"value": 1}]})), "found a broken tree"),
        (lambda path: rewrite(path, tree='{"list":[' * 20_000), "found a broken tree"),
        (lambda path: rewrite(path, tree=json.dumps({"list": [{"tensor": "00000"}]})), "found something else"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(comfy, tmp_path, damage, found):
    path = tmp_path / "bad one.safetensors"
    files.save(path, [[torch.zeros(1, 2, 3), {}]])
    damage(path)
    with pytest.raises(ValueError, match=rf"bad one\.safetensors: expected .*{found}"):
        files.load(path)


def test_nothing_is_copied_before_all_is_believed(comfy, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    files.save(path, [[torch.zeros(1, 2, 3), {}]])
    monkeypatch.setattr(torch.Tensor, "clone", lambda x: pytest.fail("copied"))
    for changes in ({"format": "dit-accel/profile"}, {"version": "2"}, {"tree": "["}, {"tree": '{"value": 1}'}):
        rewrite(path, **changes)
        with pytest.raises(ValueError, match="expected"):
            files.load(path)


def test_a_tensor_that_is_named_a_thousand_times_is_copied_once(comfy, tmp_path, monkeypatch):
    path, copies, clone = tmp_path / "c.safetensors", [], torch.Tensor.clone
    files.save(path, [[torch.zeros(1, 2, 3), {}]])
    entry = {"list": [{"tensor": "00000"}, {"dict": {}}]}
    rewrite(path, tree=json.dumps({"list": [entry] * 1000}))
    monkeypatch.setattr(torch.Tensor, "clone", lambda x: copies.append(1) or clone(x))
    assert len(files.load(path)) == 1000
    assert len(copies) == 1
