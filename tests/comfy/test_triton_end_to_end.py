"""The node on a tiny model with every Triton kernel really launched, in Triton's interpreter."""

import importlib

import pytest

from dit_accel.kernels import registry

LAUNCHES = [
    ("triton_kmeans", "launch_assign"),
    ("triton_block_mean", "launch"),
    ("triton_top_p", "launch_select"),
    ("triton_gather", "launch_gather"),
    ("triton_gather", "launch_lists"),
    ("triton_block_sparse_attention", "launch"),
    ("triton_compensation_error", "launch"),
]
KMEANS, ERROR = ("triton_kmeans", "launch_assign"), ("triton_compensation_error", "launch")
USED = {
    "svg_ear": set(LAUNCHES),
    "svg2": set(LAUNCHES) - {ERROR},
    **dict.fromkeys(("pooled", "window", "svg1"), set(LAUNCHES) - {KMEANS, ERROR}),
}


@pytest.fixture
def launched(monkeypatch):
    """Counts the launches of each kernel, with the interpreter standing in for the GPU."""
    monkeypatch.setattr(registry, "interpreted", lambda: True)
    registry.triton_problem.cache_clear()
    counts = dict.fromkeys(LAUNCHES, 0)
    for file, name in LAUNCHES:
        module = importlib.import_module(f"dit_accel.kernels.{file}")
        real = getattr(module, name)

        def launch(*args, key=(file, name), real=real):
            counts[key] += 1
            return real(*args)

        monkeypatch.setattr(module, name, launch)
    return counts


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("wan t2v odd size", "svg2"), ("hunyuan 1", "svg2"), ("hunyuan 1", "svg_ear")]
    + [("wan t2v odd size", name) for name in ("pooled", "window", "svg1")],
)
def test_every_kernel_runs_and_agrees_with_the_reference(tiny, launched, monkeypatch, name, pattern):
    case = next(case for case in tiny.CASES if case.name == name)
    model = case.model()
    sparse = tiny.sparse(model, pattern=pattern, top_p=0.5, floor=0.0, fallback="error")
    out = tiny.sample(sparse, case, steps=1, cfg=1.0)
    (run,) = tiny.history(sparse)
    assert run.sparse == {"triton": case.calls}
    assert 0.05 < run.density < 0.9
    assert {kernel for kernel, count in launched.items() if count} == USED[pattern]
    assert all(count == 0 or count >= case.calls for count in launched.values()), launched

    monkeypatch.setattr(registry, "choose", lambda *_, **__: (None, "switched off"))
    reference = tiny.sparse(model, pattern=pattern, top_p=0.5, floor=0.0)
    difference = out - tiny.sample(reference, case, steps=1, cfg=1.0)
    if pattern == "svg_ear":
        # Sums in another order may let one of two blocks win that err equally.
        dropped = out - tiny.sample(model, case, steps=1, cfg=1.0)
        assert difference.norm() < 0.05 * dropped.norm()
    else:
        assert difference.abs().max() < 1e-4
    assert tiny.history(reference)[0].sparse == {"reference": case.calls}
