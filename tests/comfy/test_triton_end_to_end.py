"""The node on a tiny model with every Triton kernel really launched, in Triton's interpreter."""

import importlib

import pytest

from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.comfy.sparse import sparse_call
from dit_accel.kernels import registry
from dit_accel.tests.support.closeness import NETWORK, assert_close

LAUNCHES = [
    ("kmeans", "launch_assign"),
    ("block_mean", "launch"),
    ("top_p", "launch_select"),
    ("gather", "launch_gather"),
    ("gather", "launch_lists"),
    ("block_sparse_attention", "launch"),
    ("compensation_error", "launch"),
    ("quantise", "launch"),
    ("group", "launch"),
    ("axis_tree", "launch"),
]
CLUSTERS = {("kmeans", "launch_assign"), ("group", "launch")}
TREE = ("axis_tree", "launch")
ERROR = ("compensation_error", "launch")
GATHER, QUANTISE = ("gather", "launch_gather"), ("quantise", "launch")
REST = ("pooled", "window", "svg1")


def unused(pattern: str) -> set:
    """The kernels that a pattern has no use for, by what it says of its planning."""
    planning = PATTERNS[pattern].planning
    use = ((CLUSTERS, planning.clusters), ({ERROR}, planning.probe), ({TREE}, planning.trees))
    return set().union(*(kernels for kernels, used in use if not used))


@pytest.fixture
def launched(monkeypatch):
    """Counts the launches of each kernel, with the interpreter standing in for the GPU."""
    monkeypatch.setattr(registry, "interpreted", lambda: True)
    registry.triton_problem.cache_clear()
    counts = dict.fromkeys(LAUNCHES, 0)
    for file, name in LAUNCHES:
        module = importlib.import_module(f"dit_accel.kernels.triton.{file}")
        real = getattr(module, name)

        def launch(*args, key=(file, name), real=real, **options):
            counts[key] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, name, launch)
    return counts


@pytest.mark.parametrize(
    ("name", "pattern", "precision"),
    [
        ("wan t2v odd size", "svg2", "auto"),
        pytest.param("hunyuan 1", "svg2", "16-bit", marks=pytest.mark.thorough),
        pytest.param("hunyuan 1", "svg_ear", "auto", marks=pytest.mark.thorough),
        ("wan t2v odd size", "tree", "auto"),
        *(pytest.param("wan t2v odd size", name, "auto", marks=pytest.mark.thorough) for name in REST),
        pytest.param("hunyuan 1", "svg_ear", "8-bit", marks=pytest.mark.thorough),
        pytest.param("wan t2v odd size", "svg2", "8-bit", marks=pytest.mark.thorough),
    ],
)
def test_every_kernel_runs_and_agrees_with_the_reference(tiny, launched, monkeypatch, name, pattern, precision):
    case = next(case for case in tiny.CASES if case.name == name)
    model = case.model()
    # The interpreter has the formats of chips without FP8.
    monkeypatch.setattr(sparse_call, "REFERENCE_CHIP", "interpreter")
    label = " 8-bit" if precision == "8-bit" else ""
    settings = {"pattern": pattern, "precision": precision, "top_p": 0.5, "floor": 0.0}
    sparse = tiny.sparse(model, **settings, fallback="error")
    out = tiny.sample(sparse, case, steps=1, cfg=1.0)
    (run,) = tiny.history(sparse)
    assert run.sparse == {f"triton{label}": case.calls}
    assert 0.05 < run.density < 0.9
    idle = unused(pattern) | {GATHER if label else QUANTISE}
    assert {kernel for kernel, count in launched.items() if count} == set(LAUNCHES) - idle
    assert all(count == 0 or count >= case.calls for count in launched.values()), launched

    monkeypatch.setattr(registry, "choose", lambda *_, **__: (None, "switched off"))
    reference = tiny.sparse(model, **settings)
    expected = tiny.sample(reference, case, steps=1, cfg=1.0)
    if pattern == "svg_ear" or label:
        # Sums in another order may let one of two blocks win that err equally, or round to the next code.
        dropped = out - tiny.sample(model, case, steps=1, cfg=1.0)
        assert (out - expected).norm() < 0.05 * dropped.norm()
    else:
        assert_close(out, expected, units=NETWORK)
    assert tiny.history(reference)[0].sparse == {f"reference{label}": case.calls}
