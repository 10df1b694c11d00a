"""The whole sparse call at the size of a 720p clip, on fake tensors: shapes, memory and no way back to the host."""

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.account.forward_statistics import ForwardStatistics
from dit_accel.accel.attention.account.stopwatch import Stopwatch
from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.memory import StaticPlans, TensorCache
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.profiles.observer import CANDIDATES, Observer
from dit_accel.kernels import (
    axis_tree,
    block_mean,
    block_sparse_attention,
    compensation_error,
    gather,
    group,
    kmeans,
    quantise,
    registry,
    row_attention,
    top_p,
)
from dit_accel.kernels.quantise import FP8, INT8, Formats
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.forwards import evaluate, make_run, outside_comfyui
from dit_accel.tests.support.memory import LiveMemory

ROOT = Path(__file__).resolve().parents[2]
# Wan 2.1 14B, 720p, 81 frames.
LAYOUT = TokenLayout((21, 45, 80))
HEADS, DIM = 40, 128


class NoKernel:
    """Stands in for a Triton kernel: the launch around it runs, the kernel does not."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.fixture
def launchers(monkeypatch):
    """Opens the custom operators, so that fake tensors reach the code that launches the kernels."""
    monkeypatch.setattr(registry, "architecture", lambda device: "sm_90")
    opened = {
        (kmeans, "_assign"): ("launch_assign", "_assign"),
        (axis_tree, "_order"): ("launch", "_axes", "_scores", "_halve"),
        (block_mean, "_mean"): ("launch", "_mean"),
        (top_p, "_select"): ("launch_select", "_select"),
        (gather, "_gather"): ("launch_gather", "_gather"),
        (gather, "_lists"): ("launch_lists", "_lists"),
        (row_attention, "_rows"): ("launch", "_attend_part"),
        (group, "_group"): ("launch", "_count", "_place"),
        (quantise, "_quantise"): ("launch", "_quantise"),
        (compensation_error, "_error"): ("launch", "_error"),
        (block_sparse_attention, "_attend"): ("launch", "_attend"),
    }
    launched = []
    for (module, op), (launch, *kernels) in opened.items():
        operation = module.__name__.rpartition(".")[2]
        triton_module = importlib.import_module(f"dit_accel.kernels.triton.{operation}")
        for kernel in kernels:
            monkeypatch.setattr(triton_module, kernel, NoKernel())

        real = getattr(triton_module, launch)

        def run(*args, real=real, key=(operation, launch), **kwargs):
            launched.append(key)
            return real(*args, **kwargs)

        monkeypatch.setattr(triton_module, launch, run)
        monkeypatch.setattr(module, f"{op}_op", getattr(module, f"{op}_triton"))
    return launched


@pytest.fixture
def static_maps_are_real(monkeypatch):
    """A static map is made from numbers, on the host, once in a run; what a call does with it is not."""
    get = StaticPlans.get

    def outside(self, key, make):
        with unset_fake_temporarily():
            return get(self, key, make)

    monkeypatch.setattr(StaticPlans, "get", outside)


@pytest.mark.spread(1)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("formats", [None, Formats(INT8, FP8), Formats(INT8, None)], ids=["16", "8", "8 and 16"])
def test_memory_and_shapes_at_full_size(launchers, static_maps_are_real, formats, pattern, warm):
    """A read of the device, or a shape that only the device knows, raises on a fake tensor."""
    assert LAYOUT.total == 75_600
    with FakeTensorMode(allow_non_fake_inputs=True):
        # ComfyUI's layout: [B, N, H * D] seen as [B, H, N, D].
        q, k, v = (torch.empty(1, LAYOUT.total, HEADS, DIM, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
        inputs = 3 * q.numel() * q.element_size()
        cache, static, statistics = TensorCache(), StaticPlans(), ForwardStatistics()
        for _ in range(1 + warm):
            with LiveMemory(q, k, v, result=(1, LAYOUT.total, HEADS, DIM)) as memory:
                call = make_call(q, k, v, LAYOUT, cache=cache, static=static, backend="triton")
                plan = PATTERNS[pattern].plan(call, PRESETS["faithful"].spending())
                out = executor.execute(q, k, v, plan, formats=formats, scale=DIM**-0.5, backend="triton")
                statistics.record(plan, Stopwatch(torch.device("cpu")), "triton")
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        blocks = {"svg2": (296, 995), "svg_ear": (296, 995), "tree": (1 + 591, 1 + 1182)}.get(pattern)
        assert blocks is None or plan.keep.shape == (1, HEADS, *blocks)
        # Every call launches the selection of blocks, lists, gathers (or quantises) and attends; the rest is counted.
        counted = PATTERNS[pattern].planning
        means = bool(counted.means) or counted.clusters
        assert len(set(launchers)) == 4 + means + 2 * counted.clusters + counted.trees + counted.probe
        print(f"\npeak {memory.peak / 2**30:.2f} GiB beside {inputs / 2**30:.2f} GiB of q, k, v")
        assert memory.peak >= 0.8 * block_sparse_attention.GATHERED, "the gathered keys and values were not seen"
        assert memory.peak <= 0.42 * inputs


def test_the_override_with_two_branches_and_text(launchers, monkeypatch):
    """The whole call as a model makes it, cold and warm, statistics included."""
    outside_comfyui(monkeypatch)
    monkeypatch.setattr(registry, "choose", lambda *_, **__: ("triton", ""))
    layout, run = TokenLayout((21, 30, 52), prefix=256), make_run()
    with FakeTensorMode():
        q, k, v = (torch.empty(2, layout.total, 4 * DIM, dtype=torch.bfloat16) for _ in range(3))
        for _ in range(2):
            forward, out = evaluate(run, layout, q, k, v, heads=4)
            assert forward.statistics.sparse == {"triton": 1}
            assert out.shape == q.shape
        assert len(run.cache) == 2
    assert ("row_attention", "launch") in launchers


@pytest.mark.parametrize("pattern", PATTERNS)
def test_measuring_at_full_size(launchers, static_maps_are_real, pattern):
    """Eight plans of one call and what they would do to its rows: the memory is that of parts of the heads."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = (torch.empty(1, LAYOUT.total, HEADS, DIM, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
        with LiveMemory(q, k, v, result=(HEADS, len(CANDIDATES))) as memory:
            call = make_call(q, k, v, LAYOUT, backend="triton")
            density, error, norm = Observer(pattern, 1.0, 20).observe(call, 5)
        assert density.shape == error.shape == (HEADS, len(CANDIDATES))
        assert norm.shape == (HEADS,)
        print(f"\npeak {memory.peak / 2**30:.2f} GiB")
        assert memory.peak < 3 * q.numel() * q.element_size()


READS = {"item", "tolist", "cpu", "nonzero", "argwhere", "masked_select", "unique", "numpy", "synchronize"}
ATTENTION, SPARSE = ROOT / "accel" / "attention", ROOT / "accel" / "comfy" / "sparse"
CALL_PATH = [
    *(
        ATTENTION / name
        for name in ("call.py", "executor.py", "guard.py", "layout.py", "memory.py", "plan.py", "spending.py")
    ),
    ATTENTION / "account" / "sample.py",
    *(ATTENTION / "cost" / name for name in ("costs.py", "gate.py", "race.py")),
    # blocks.py works on the CPU, once for a layout.
    *sorted(file for file in (ATTENTION / "planners").glob("*.py") if file.name != "blocks.py"),
    *(SPARSE / name for name in ("override.py", "sparse_call.py", "forward_state.py")),
    *sorted((ROOT / "kernels").rglob("*.py")),
]


# What the backend torch does on a CPU, which is the host; elsewhere it waits once a call, for the sizes of its batches.
ON_THE_HOST = {
    "gathered_attention.py": ("attend_in_tasks", "_Head", "attend_in_batches"),
    "group.py": ("_group_torch",),
    "kmeans.py": ("_assign_torch",),
}


def reads_of_the_device(code: str, but: Sequence[str] = ()) -> list[int]:
    """Lines that read the device or index by a boolean mask, whose result has a size only the device knows; but: in
    functions that may."""
    lines = []
    module = ast.parse(code)
    module.body = [node for node in module.body if getattr(node, "name", None) not in but]
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            constants = [*node.args, *(keyword.value for keyword in node.keywords)]
            to_host = any(isinstance(value, ast.Constant) and value.value == "cpu" for value in constants)
            where = node.func.attr == "where" and len(node.args) == 1 and not node.keywords
            if node.func.attr in READS or (node.func.attr == "to" and to_host) or where:
                lines.append(node.lineno)
        if isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if any(is_mask(part) for part in parts):
                lines.append(node.lineno)
    return lines


def is_mask(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Invert)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitAnd | ast.BitOr) and (is_mask(node.left) or is_mask(node.right))
    return isinstance(node, ast.Compare)


@pytest.mark.parametrize("path", CALL_PATH, ids=lambda path: str(path.relative_to(ROOT)))
def test_call_path_never_reads_the_device(path):
    assert reads_of_the_device(path.read_text("utf-8"), ON_THE_HOST.get(path.name, ())) == []


@pytest.mark.parametrize("function", ["measure", "_difference"])
def test_measuring_never_reads_the_device(function):
    """The rest of observer.py runs between forwards, where it may."""
    code = ast.parse((ATTENTION / "profiles" / "observer.py").read_text("utf-8"))
    (found,) = (node for node in code.body if isinstance(node, ast.FunctionDef) and node.name == function)
    assert reads_of_the_device(ast.unparse(found)) == []


@pytest.mark.parametrize(
    "code",
    [
        "x.sum().item()",
        "x.to('cpu')",
        "x.to(device='cpu')",
        "torch.where(x)",
        "torch.argwhere(x)",
        "x[x > 0]",
        "x[:, ~mask]",
        "x[(x > 0) & (x < 1)]",
    ],
)
def test_the_check_sees_a_read(code):
    assert reads_of_the_device(code) == [1]


@pytest.mark.parametrize(
    "read", ["bool(x.any())", "float(x.sum())", "int(x.sum())", "x[mask]", "x.repeat_interleave(n)"]
)
def test_fake_tensors_see_the_rest(read):
    with FakeTensorMode(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        x = torch.empty(4)
        eval(read, {"x": x, "mask": x > 0, "n": x.long()})
