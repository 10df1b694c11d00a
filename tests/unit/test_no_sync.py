"""The whole sparse call at the size of a 720p clip, on fake tensors: shapes, memory and no way back to the host."""

import ast
import importlib
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import svg2
from dit_accel.accel.attention.state import ClusterCache, WarmStart
from dit_accel.accel.attention.statistics import ForwardStatistics, Stopwatch
from dit_accel.kernels import block_sparse_attention, gather, kmeans, registry, top_p
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
        (kmeans, "_assign_op"): ("triton_kmeans", "launch_assign", "_assign"),
        (kmeans, "_update_op"): ("triton_kmeans", "launch_update", "_update"),
        (top_p, "_select_op"): ("triton_top_p", "launch_select", "_select"),
        (gather, "_gather_op"): ("triton_gather", "launch_gather", "_gather"),
        (gather, "_lists_op"): ("triton_gather", "launch_lists", "_lists"),
        (block_sparse_attention, "_attend_op"): ("triton_block_sparse_attention", "launch", "_attend"),
    }
    launched = []
    for (module, op), (file, launch, kernel) in opened.items():
        triton_module = importlib.import_module(f"dit_accel.kernels.{file}")
        monkeypatch.setattr(triton_module, kernel, NoKernel())

        def run(*args, module=triton_module, name=launch):
            launched.append(name)
            return getattr(module, name)(*args)

        monkeypatch.setattr(module, op, run)
    return launched


@pytest.mark.parametrize("warm", [False, True])
def test_memory_and_shapes_at_full_size(launchers, warm):
    """A read of the device, or a shape that only the device knows, raises on a fake tensor."""
    assert LAYOUT.total == 75_600
    with FakeTensorMode():
        # ComfyUI's layout: [B, N, H * D] seen as [B, H, N, D].
        q, k, v = (torch.empty(1, LAYOUT.total, HEADS, DIM, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
        inputs = 3 * q.numel() * q.element_size()
        cache, statistics = ClusterCache(), ForwardStatistics()
        for _ in range(1 + warm):
            with LiveMemory(q, k, v) as memory:
                plan = svg2.plan(
                    q,
                    k,
                    LAYOUT,
                    PRESETS["faithful"],
                    WarmStart(cache, ("a",), "layer"),
                    scale=DIM**-0.5,
                    backend="triton",
                )
                out = executor.execute(q, k, v, plan, scale=DIM**-0.5, backend="triton")
                statistics.record(plan, Stopwatch(torch.device("cpu")), "triton")
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        assert plan.keep.shape == (1, HEADS, 296, 995)
        assert len(set(launchers)) == 6
        print(f"\npeak {memory.peak / 2**30:.2f} GiB beside {inputs / 2**30:.2f} GiB of q, k, v")
        assert memory.peak >= 1.5 * inputs / 3, "the gathered keys and values were not seen"
        assert memory.peak <= 2 * inputs


def test_two_branches_at_full_size(launchers):
    """The same without a data-dependent shape where the batch holds two branches with warm starts."""
    with FakeTensorMode():
        q, k, v = (torch.empty(2, 4, 32_760, DIM, dtype=torch.bfloat16) for _ in range(3))
        cache, layout = ClusterCache(), TokenLayout((21, 30, 52))
        for _ in range(2):
            start = WarmStart(cache, ("a", "b"), "layer")
            plan = svg2.plan(q, k, layout, PRESETS["turbo"], start, scale=0.1, backend="triton")
        assert executor.execute(q, k, v, plan, scale=0.1, backend="triton").shape == q.shape
        assert len(cache) == 2


FORBIDDEN_CALLS = {"item", "tolist", "cpu", "nonzero", "masked_select", "unique", "numpy", "synchronize"}
CALL_PATH = [
    "accel/attention/clusters.py",
    "accel/attention/executor.py",
    "accel/attention/layout.py",
    "accel/attention/plan.py",
    "accel/attention/planners/svg2.py",
    "accel/attention/state.py",
    "accel/comfy/override.py",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "kernels").rglob("*.py"))),
]


@pytest.mark.parametrize("path", CALL_PATH)
def test_call_path_never_reads_the_device(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in FORBIDDEN_CALLS, f"{path}:{node.lineno}"
            if node.func.attr == "to":
                assert not any(isinstance(a, ast.Constant) and a.value == "cpu" for a in node.args), path
        # A subscript by a comparison is boolean-mask indexing: its result has a size only the device knows.
        if isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            assert not any(isinstance(part, ast.Compare | ast.Invert) for part in parts), f"{path}:{node.lineno}"
