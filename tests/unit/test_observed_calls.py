"""Calls that are measured and sampled on their way: what it leaves behind, and that no failure of it stops the run."""

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.profiles.observer import Observer
from dit_accel.accel.comfy.sparse import override, sparse_call
from dit_accel.kernels import registry
from dit_accel.tests.support.forwards import make_forward, make_run, outside_comfyui

LAYOUT = TokenLayout((4, 8, 8), prefix=5)
HEADS, DIM, STEP = 2, 32, 2
FAILURES = {torch.OutOfMemoryError: reasons.OUT_OF_MEMORY}


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch):
    outside_comfyui(monkeypatch)
    monkeypatch.setattr(registry, "choose", lambda *_, **__: (None, "no GPU"))
    for module in (override, sparse_call):
        monkeypatch.setattr(module, "failure_reason", lambda error, _: FAILURES.get(type(error)))


def tokens(seed: int) -> torch.Tensor:
    return torch.randn(1, LAYOUT.total, HEADS * DIM, generator=torch.Generator().manual_seed(seed))


def observed_forward(run=None):
    """The first forward of a run of four steps that is measured."""
    run = run or make_run("reference")
    run.observer = Observer("svg2", 1.0, 4)
    forward = make_forward(run, LAYOUT, branches=("a",))
    forward.statistics.step = STEP
    return forward


def evaluate(forward, calls: int = 1, **options) -> torch.Tensor:
    """Dense attention gives zeros."""
    for call in range(calls):
        out = override.attention_override(
            lambda q, *_, **__: torch.zeros_like(q),
            *(tokens(3 * call + place) for place in range(3)),
            HEADS,
            transformer_options={override.FORWARD_KEY: forward},
            **options,
        )
    return out


def test_a_sparse_call_gives_the_same_whether_it_is_measured_or_not():
    forwards = observed_forward(), make_forward(make_run("reference"), LAYOUT, branches=("a",))
    first, plain = (evaluate(forward) for forward in forwards)
    assert torch.equal(first, plain)
    assert [len(forward.statistics.observations) for forward in forwards] == [1, 0]
    # The next step begins with what the last one remembered.
    assert torch.equal(evaluate(forwards[0]), evaluate(forwards[1]))


@pytest.mark.parametrize("options", [{"mask": torch.ones(1)}, {"low_precision_attention": False}])
def test_a_call_that_the_sparse_kernel_does_not_take_is_not_measured(options):
    forward = observed_forward()
    evaluate(forward, **options)
    assert not forward.statistics.observations and not forward.statistics.sparse


def test_what_was_measured_waits_in_its_own_evaluation():
    """Evaluations on several devices run at once, and one whose result is thrown away takes its measurements along."""
    run = make_run("reference")
    thrown, kept = observed_forward(run), observed_forward(run)
    evaluate(thrown, calls=3)
    evaluate(kept, calls=2)
    thrown.statistics.read()
    run.discard(thrown.statistics, mended=True)
    run.add(kept.statistics)
    recording = run.close().recording
    assert recording.layers == (0, 1)
    assert recording.timing.calls == 2


def failing(monkeypatch, owner, name: str, error: Exception) -> None:
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(owner, name, fail)


def test_measuring_that_runs_out_of_memory_leaves_the_run_alone(monkeypatch):
    forward = observed_forward()
    failing(monkeypatch, Observer, "observe", torch.OutOfMemoryError())
    evaluate(forward, calls=3)
    run = forward.run
    assert forward.statistics.sparse == {"reference": 3}
    assert not run.observer.measures(0, STEP)
    run.add(forward.statistics)
    summary = run.close()
    assert summary.recording is None
    assert f"measuring stopped: {reasons.OUT_OF_MEMORY}" in summary.notes


def test_an_error_in_measuring_that_is_no_matter_of_the_machine_is_shown(monkeypatch):
    failing(monkeypatch, Observer, "observe", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        evaluate(observed_forward())


def test_a_sample_that_runs_out_of_memory_makes_the_call_dense(monkeypatch):
    forward = make_forward(make_run("reference"), LAYOUT, branches=("a",))
    failing(monkeypatch, sparse_call, "sample", torch.OutOfMemoryError())
    assert (evaluate(forward) == 0).all()
    assert forward.statistics.dense == {reasons.OUT_OF_MEMORY: 1}
    assert not forward.statistics.sparse


def test_a_call_is_sampled_and_looked_at_only_while_the_guard_is_on(monkeypatch):
    forward = make_forward(make_run("reference"), LAYOUT, branches=("a",))
    evaluate(forward)
    forward.statistics.read()
    (call,) = forward.statistics.calls
    assert 0 < call.sample.error < call.sample.norm and 0.5 < call.sample.mass < 1
    assert len(call.laps) == 3

    off = make_forward(make_run("reference"), LAYOUT, branches=("a",))
    off.run.guard.on = False
    failing(monkeypatch, sparse_call, "sample", AssertionError("sampled"))
    evaluate(off)
    assert not off.statistics._calls[0].watched
    off.statistics.read()
    assert off.statistics.calls[0].sample is None


def test_a_condemned_layer_is_dense():
    forward = make_forward(make_run("reference"), LAYOUT, branches=("a",))
    forward.run.guard.repeat(0, 1, mended=True)
    evaluate(forward, calls=3)
    assert forward.statistics.dense == {reasons.GUARD: 1}
    assert forward.statistics.sparse == {"reference": 2}
