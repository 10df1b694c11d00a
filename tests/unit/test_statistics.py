"""The summary line that a person reads and a program parses."""

import torch

from dit_accel.accel.attention.account.forward_statistics import ForwardStatistics
from dit_accel.accel.attention.account.run_summary import RunSummary, parse_line
from dit_accel.accel.attention.account.stopwatch import Stopwatch
from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.plan import BlockOrder, SparsePlan
from dit_accel.accel.attention.run import Run, Settings
from dit_accel.accel.attention.schedule import SigmaWindow


def tiny_plan() -> SparsePlan:
    """Query blocks of 1 and 3 tokens, two key blocks of 2 tokens; one of the four block pairs is dropped."""
    index = torch.zeros(1, 1, dtype=torch.int32)
    tokens = torch.arange(4, dtype=torch.int32)[None]
    return SparsePlan(
        queries=BlockOrder(tokens, torch.tensor([[0, 1, 4]], dtype=torch.int32), index),
        keys=BlockOrder(tokens, torch.tensor([[0, 2, 4]], dtype=torch.int32), index),
        keep=torch.tensor([[[[True, False], [True, True]]]]),
    )


def test_density_counts_token_pairs():
    assert tiny_plan().density().item() == (1 * 2 + 3 * 4) / 16


def a_run() -> Run:
    return Run(Settings(), PRESETS["few_step"], SigmaWindow(), "WanModel")


def record(forward: ForwardStatistics, calls: int) -> None:
    for _ in range(calls):
        watch = Stopwatch(torch.device("cpu"))
        watch.mark()
        watch.mark()
        forward.record(tiny_plan(), watch, "reference")


def test_summary_line_round_trip():
    run = a_run()
    for _ in range(2):
        forward = ForwardStatistics(expected=3)
        record(forward, 3)
        forward.dense["cross-attention"] += 3
        run.add(forward)
    summary = run.close()
    assert (summary.sparse_calls, summary.dense_calls, summary.forwards) == (6, 6, 2)
    assert summary.density == 14 / 16
    assert summary.notes == ()
    parsed = parse_line(f"[INFO] DiT Accel: {summary.line()}")
    assert parsed["sparse"] == 6
    assert parsed["density"] == 0.875
    assert parsed["backend"] == "reference"
    assert parsed["model"] == "WanModel"
    assert parsed["budget"] == "auto (few_step)"
    assert parsed["dense"] == {"cross-attention": 6}


def test_a_run_without_effect_says_why():
    run = a_run()
    forward = ForwardStatistics(expected=4)
    forward.dense["mask"] += 4
    run.add(forward)
    line = run.close().line()
    assert "0 sparse calls" in line
    assert "mask 4" in line
    assert parse_line(line)["density"] is None


def test_calls_that_never_arrive_are_noticed():
    run = a_run()
    forward = ForwardStatistics(expected=4)
    forward.dense["cross-attention"] += 4
    run.add(forward)
    assert "only 0 of 4 video self-attention calls came by" in run.close().line()


def test_a_skipped_evaluation_announces_no_calls():
    """A step cache such as EasyCache answers without running the model."""
    run = a_run()
    run.add(ForwardStatistics(expected=4))
    forward = ForwardStatistics(expected=4)
    record(forward, 4)
    run.add(forward)
    assert run.close().notes == ()


def test_a_forward_left_alone_is_counted():
    run = a_run()
    run.add(ForwardStatistics.all_dense("fewer than min_tokens", 40))
    run.add(ForwardStatistics.all_dense("family not enabled yet", 0))
    summary = run.close()
    assert summary.dense == {"fewer than min_tokens": 40, "family not enabled yet": 1}
    assert summary.notes == ()


def test_the_run_and_its_settings_survive_a_deep_copy():
    import copy

    run = a_run()
    assert copy.deepcopy({"options": {"run": run}})["options"]["run"] is run


def test_reasons_are_parsed_whatever_is_in_them():
    reasons = {
        "no fast kernel: no C compiler (cc, gcc)": 4,
        "no fast kernel: X (error 5)": 9,
        "outside the budget's window": 2,
    }
    line = RunSummary("svg2", "WanModel", "custom", dense=reasons, notes=("a note (1)",)).line()
    assert parse_line(f"{line}\nanother line (2)\n")["dense"] == reasons
    both = RunSummary("svg2", "WanModel", "custom", sparse={"triton": 1, "reference": 2}, density=0.5).line()
    assert parse_line(both)["backend"] == "triton, reference"


def test_other_lines_are_not_parsed():
    assert parse_line("got prompt") is None


def test_summary_holds_no_tensor():
    run = a_run()
    forward = ForwardStatistics(expected=2)
    record(forward, 2)
    run.add(forward)
    summary = run.close()
    assert summary.sparse_calls == 2
    assert isinstance(summary, RunSummary)
    assert not any(isinstance(value, torch.Tensor) for value in vars(summary).values())
