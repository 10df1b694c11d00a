"""The registry's reasons, and custom ops when the pack is loaded twice in one process."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from dit_accel.kernels import registry


@pytest.fixture
def fresh(monkeypatch):
    """The environment may be changed: `triton_problem` looks again, and afterwards once more."""
    registry.triton_problem.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    registry.triton_problem.cache_clear()


def ask(**changes):
    call = {"device": "cpu", "dtype": torch.float16, "head_dim": 128} | changes
    return registry.choose("block_sparse_attention", **call)


def test_the_interpreter_takes_cpu_tensors_and_fp32(fresh):
    fresh.setenv("TRITON_INTERPRET", "1")
    assert ask() == ask(dtype=torch.float32) == ("triton", "")


def test_reasons(fresh):
    fresh.setenv("TRITON_INTERPRET", "1")
    assert ask(dtype=torch.float64) == (None, "dtype float64 is not supported")
    assert ask(head_dim=80) == (None, "head dimension 80 is not supported")
    fresh.delenv("TRITON_INTERPRET")
    registry.triton_problem.cache_clear()
    assert ask() == (None, "no GPU (device is cpu)")
    fresh.setattr(torch.cuda, "is_available", lambda: False)
    assert ask(device="cuda") == (None, "no GPU (torch sees none)")


def test_an_old_gpu_is_refused_and_fp32_too(fresh):
    fresh.setattr(registry, "triton_problem", lambda device_type: None)
    fresh.setattr(registry, "interpreted", lambda: False)
    fresh.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert ask(device="cuda") == (None, "GPU older than sm_80")
    fresh.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert ask(device="cuda") == ("triton", "")
    assert ask(device="cuda", dtype=torch.float32) == (None, "dtype float32 is not supported")


@pytest.mark.parametrize("missing", ["triton", "compiler", "headers"])
def test_what_triton_lacks_is_named(fresh, missing, tmp_path):
    fresh.delenv("TRITON_INTERPRET", raising=False)
    fresh.delenv("CC", raising=False)
    fresh.setattr(torch.cuda, "is_available", lambda: True)
    fresh.setattr(sys, "platform", "linux")
    fresh.setattr(registry.shutil, "which", lambda name: None if missing == "compiler" else f"/usr/bin/{name}")
    fresh.setattr(registry.sysconfig, "get_path", lambda name: str(tmp_path))
    if missing != "headers":
        (tmp_path / "Python.h").touch()
    if missing == "triton":
        fresh.setitem(sys.modules, "triton", None)
    expected = {
        "triton": "triton is not installed",
        "compiler": "no C compiler",
        "headers": "no Python headers",
    }
    assert registry.triton_problem("cuda").startswith(expected[missing])


def test_a_broken_triton_is_a_reason_and_no_crash(fresh):
    def broken(name):
        raise ImportError("libtriton.so: undefined symbol")

    fresh.setattr(registry.importlib, "import_module", broken)
    assert registry.triton_problem("cuda") == "triton cannot be imported (libtriton.so: undefined symbol)"


def test_a_compiler_named_by_cc_must_exist(fresh, tmp_path):
    fresh.setenv("CC", str(tmp_path / "cc"))
    assert registry.c_compiler() is None


def test_rows_of_the_doctor(fresh):
    fresh.delenv("TRITON_INTERPRET", raising=False)
    rows = registry.operations("cpu")
    assert {row.operation for row in rows} == set(registry.REQUIREMENTS)
    for row in rows:
        assert row.usable == (row.backend == "reference") and bool(row.reason) != row.usable


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sm_90", 90), ("sm_87", 86), ("sm_89", 86), ("sm_103", 90), ("sm_121", 120), ("gfx950", 942)],
)
def test_an_unlisted_chip_gets_the_row_of_its_nearest_older_relative(name, expected):
    table = {"sm_80": 80, "sm_86": 86, "sm_90": 90, "sm_120": 120, "gfx942": 942, "gfx1100": 1100}
    assert registry.nearest(table, name) == expected


def test_the_pack_loaded_twice_registers_its_ops_once():
    """As ComfyUI does: by path, under another name, while the installed pack is in use."""
    from dit_accel.kernels import axis_tree, gather, kmeans, top_p

    root = Path(registry.__file__).parents[1]
    spec = importlib.util.spec_from_file_location(
        "second_copy", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    sys.modules["second_copy"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules["second_copy"])
        for module, op in (
            (gather, "_gather_op"),
            (gather, "_lists_op"),
            (kmeans, "_assign_op"),
            (axis_tree, "_order_op"),
            (top_p, "_select_op"),
        ):
            name = module.__name__.rsplit(".", 1)[1]
            second = importlib.import_module(f"second_copy.kernels.{name}")
            assert second is not module and getattr(second, op) is getattr(module, op)
        second_attention = importlib.import_module("second_copy.kernels.block_sparse_attention")
        assert second_attention._attend_op is torch.ops.dit_accel.attend_chunks.default
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "second_copy"]:
            del sys.modules[name]
