"""The registry's reasons, and custom ops when the pack is loaded twice in one process."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from dit_accel.kernels import block_sparse_attention, group, registry, relu_linear_attention
from dit_accel.kernels.attention_configs import reads_tall_chunks


@pytest.fixture
def fresh(monkeypatch):
    """The environment may be changed: the registry looks again, and afterwards once more."""
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def forget():
    for search in (registry.triton_problem, registry.triton_version, registry.import_problem, registry.trial_problem):
        search.cache_clear()


@pytest.fixture
def on_a_gpu(fresh):
    """A card that nothing but its kernels can keep from running them."""
    fresh.setattr(registry, "triton_problem", lambda device_type: None)
    fresh.setattr(registry, "interpreted", lambda: False)
    fresh.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    return fresh


CALL = {"device": "cpu", "dtype": torch.float16, "head_dim": 128}


def ask(**changes):
    return registry.choose("block_sparse_attention", **CALL | changes)


def why_not(**changes):
    """Of Triton."""
    return registry.why_not("block_sparse_attention", "triton", **CALL | changes)


def test_the_interpreter_takes_cpu_tensors_and_fp32(fresh):
    fresh.setenv("TRITON_INTERPRET", "1")
    assert ask() == ask(dtype=torch.float32) == ("triton", "")


def test_reasons(fresh):
    fresh.setenv("TRITON_INTERPRET", "1")
    assert ask(dtype=torch.float64) == (None, "dtype float64 is not supported")
    assert why_not(head_dim=80) == "head dimension 80 is not supported"
    fresh.delenv("TRITON_INTERPRET")
    registry.triton_problem.cache_clear()
    assert why_not() == "no GPU (device is cpu)"
    fresh.setattr(torch.cuda, "is_available", lambda: False)
    assert why_not(device="cuda") == "no GPU (torch sees none)"


def test_what_triton_cannot_do_torch_does(fresh):
    fresh.delenv("TRITON_INTERPRET", raising=False)
    for operation, backends in registry.REQUIREMENTS.items():
        for dtype in backends["reference"].dtypes or (torch.int32,):
            found, reason = registry.choose(operation, device="cpu", dtype=dtype, head_dim=80)
            assert (found, bool(reason)) == (("torch", False) if "torch" in backends else (None, True))


def test_an_old_gpu_is_refused_and_fp32_too(on_a_gpu):
    on_a_gpu.setattr(block_sparse_attention, "trial", lambda device, dtype, head_dim: None)
    on_a_gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert why_not(device="cuda") == "GPU older than sm_80"
    on_a_gpu.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert ask(device="cuda") == ("triton", "")
    assert why_not(device="cuda", dtype=torch.float32) == "dtype float32 is not supported"


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


def test_kernels_that_this_triton_cannot_import_are_a_reason(on_a_gpu):
    real = importlib.import_module

    def import_module(name, package=None):
        if name.endswith("triton.block_sparse_attention"):
            raise ModuleNotFoundError("No module named 'triton.tools.tensor_descriptor'")
        return real(name, package)

    on_a_gpu.setattr(registry.importlib, "import_module", import_module)
    reason = "its kernels cannot be imported: ModuleNotFoundError: No module named 'triton.tools.tensor_descriptor'"
    assert why_not(device="cuda") == reason


def test_kernels_that_do_not_compile_for_this_card_are_a_reason(on_a_gpu):
    tried = []

    def trial(device, dtype, head_dim):
        tried.append((device.type, dtype, head_dim))
        raise AssertionError("input_precision must be one of ('tf32', 'tf32x3', 'ieee'). Got bf16x6\nat 12:4")

    on_a_gpu.setattr(relu_linear_attention, "trial", trial)
    asked = {"device": "cuda", "dtype": torch.bfloat16, "head_dim": 32}
    for _ in range(2):
        assert registry.choose("relu_linear_attention", **asked) == (
            None,
            "its kernels do not compile here: AssertionError: input_precision must be one of ('tf32', 'tf32x3', "
            "'ieee'). Got bf16x6",
        )
    assert tried == [("cuda", torch.bfloat16, 32)], "once in a process"


def test_a_trial_for_which_there_is_no_memory_says_nothing(on_a_gpu):
    tried = []

    def trial(*_):
        tried.append(None)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    on_a_gpu.setattr(block_sparse_attention, "trial", trial)
    assert ask(device="cuda") == ask(device="cuda") == ("triton", "")
    assert len(tried) == 2, "and comes again"


@pytest.mark.parametrize("operation", registry.REQUIREMENTS)
def test_the_trial_of_an_operation_launches_its_kernels(monkeypatch, operation):
    """All of them: the doctor believes it."""
    kernels = importlib.import_module(f"dit_accel.kernels.triton.{operation}")
    defined = {name for name, value in vars(kernels).items() if is_kernel(value, kernels) and in_a_grid(kernels, name)}
    launched = set()
    for name in defined:
        monkeypatch.setattr(kernels, name, Spy(getattr(kernels, name), name, launched))
    needs = registry.REQUIREMENTS[operation]["triton"]
    dtype = torch.float32 if needs.dtypes == (torch.float32,) else torch.float16
    module = importlib.import_module(f"dit_accel.kernels.{operation}")
    module.trial(torch.device("cpu"), dtype, (needs.head_dims or (None,))[-1])
    assert defined and launched == defined


def is_kernel(value, module) -> bool:
    return type(value).__name__ == "InterpretedFunction" and value.fn.__module__ == module.__name__


def in_a_grid(module, name: str) -> bool:
    """Whether the file launches the function, which others only call."""
    return f"{name}[(" in Path(module.__file__).read_text("utf-8")


class Spy:
    """A kernel that says when it is launched."""

    def __init__(self, kernel, name: str, launched: set):
        self.kernel, self.name, self.launched = kernel, name, launched

    def __getitem__(self, grid):
        self.launched.add(self.name)
        return self.kernel[grid]


@pytest.mark.parametrize("version", ["3.3.1", "3.5.0+gitc3c476f3", "3.10.0"])
def test_the_version_of_triton(fresh, version):
    import triton

    fresh.setattr(triton, "__version__", version)
    assert registry.triton_version() == tuple(map(int, version.split(".")[:2]))
    fresh.setitem(sys.modules, "triton", None)
    registry.triton_version.cache_clear()
    assert registry.triton_version() == (0, 0)


def test_what_triton_3_3_lacks_is_done_without(fresh):
    """Descriptors, a table looked up in registers, and fp32 products of six parts."""
    from dit_accel.kernels.triton import group as kernels
    from dit_accel.kernels.triton.relu_linear_attention import _precision

    assert reads_tall_chunks("sm_90") and _precision("sm_90") == _precision("gfx1100") == "bf16x6"
    fresh.setattr(registry, "triton_version", lambda: (3, 3))
    assert not reads_tall_chunks("sm_90")
    assert (_precision("sm_90"), _precision("gfx1100")) == ("tf32x3", "ieee")
    labels = torch.randint(0, 9, (1, 2, 50), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    expected = group.group(labels, 9, backend="triton" if registry.interpreted() else "reference")
    fresh.setattr(kernels, "launch", None)
    for found, order in zip(group.group(labels, 9, backend="triton"), expected, strict=True):
        assert torch.equal(found, order)


def test_a_compiler_named_by_cc_must_exist(fresh, tmp_path):
    fresh.setenv("CC", str(tmp_path / "cc"))
    assert registry.c_compiler() is None


def test_rows_of_the_doctor(fresh):
    fresh.delenv("TRITON_INTERPRET", raising=False)
    rows = registry.operations("cpu")
    assert {row.operation for row in rows} == set(registry.REQUIREMENTS)
    for row in rows:
        assert row.usable == (row.backend != "triton") and bool(row.reason) != row.usable


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
