"""The bench of whole forwards: what its rows say, on a model that is made up."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.account.run_summary import RunSummary
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.bench.sweep import Target
from dit_accel.accel.cli.row_file import Rows
from dit_accel.tests.bench import forward
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.bench.commands import forward as bench_forward

OUT = torch.tensor([3.0, 4.0])


class Model:
    """Finds OUT, and what is given in its stead where it is sparse. Its attention takes 2 ms a layer."""

    def __init__(self, sparse=OUT, summary=None, layers=2):
        self.out, self.summary, self.layers = sparse, summary or summed(sparse={"reference": 6}), layers
        self.runs = Counter()
        self.settings = []

    def dense(self, work):
        def evaluate():
            self.runs["dense"] += 1
            return OUT

        def milliseconds(calls):
            assert calls == self.layers * self.runs["dense"]
            return 2.0 * calls

        return work(evaluate), SimpleNamespace(milliseconds=milliseconds)

    def sparse(self, settings, work):
        self.settings.append(settings)
        return work(lambda: self.out), self.summary


def summed(**changes):
    return RunSummary("window", "m", "custom", expected=6, density=0.25, **changes)


@pytest.fixture
def timings(monkeypatch):
    """Medians of 100 and 110 ms, whatever runs; 7 bytes at most."""

    def timed(function, repeats, device):
        return forward.Timing([function() for _ in range(2 * repeats)][-1], 100.0, 110.0)

    monkeypatch.setattr(forward, "timed", timed)
    monkeypatch.setattr(forward, "peak_bytes", lambda function, device: function() is not None and 7)


def make_case(model, layers=2, repeats=3):
    return forward.Case(lambda: model, {"dim": 256}, layers, (2, 3, 4), torch.device("cpu"), repeats)


QUARTER = forward.target_of(0.25)


def rows(case, targets=(QUARTER,), precisions=("16-bit",), done=lambda **fields: False):
    return list(forward.rows_of(case, ["window"], targets, precisions, "reference", done))


def test_a_row(timings):
    model = Model(sparse=torch.tensor([3.0, 4.5]))
    (row,) = rows(make_case(model))
    assert (row["what"], row["layers"], row["tokens"], row["grid"], row["dim"]) == ("forward", 2, 24, [2, 3, 4], 256)
    assert (row["pattern"], row["precision"], row["backend"]) == ("window", "16-bit", "reference")
    assert (row["dense_ms"], row["dense_again_ms"], row["sparse_ms"], row["sparse_again_ms"]) == (100, 110, 100, 110)
    assert (row["peak_bytes"], row["dense_peak_bytes"]) == (7, 7)
    assert row["error"] == pytest.approx(0.1) and row["density"] == 0.25 and row["valid"]
    # Two layers of 2 ms in every one of 2 x 3 + 1 evaluations of 105 ms.
    assert model.runs["dense"] == 7 and row["attention_share"] == pytest.approx(4 / 105)


def test_a_block_is_a_model_of_one_layer(timings):
    assert make_case(Model(), layers=1).about()["what"] == "block"


def test_dense_is_measured_once_for_all_rows(timings):
    model = Model()
    assert len(rows(make_case(model), [forward.target_of(0.2), forward.target_of(0.3)], ["16-bit", "8-bit"])) == 4
    assert model.runs["dense"] == 7


def test_the_whole_run_is_sparse_and_the_budget_is_what_was_asked(timings):
    model = Model()
    rows(make_case(model), [forward.target_of(0.2), Target(None, Budget(top_p=0.7, max_density=0.5))])
    for settings, (top_p, floor, most) in zip(model.settings, [(1.0, 0.0, 0.2), (0.7, 0.05, 0.5)], strict=True):
        budget = settings.budget
        assert (budget.top_p, budget.floor, budget.max_density) == (top_p, floor, most)
        assert (budget.dense_first, budget.dense_last, budget.min_tokens, budget.dense_blocks) == (0, 0, 0, frozenset())
        assert (settings.guard, settings.fallback) == ("off", "reference")


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"sparse": {"triton": 6}}, 1.0),
        ({"sparse": {"triton": 3}}, 0.5),  # three calls never came by
        ({"sparse": {"triton": 6}, "dense": {reasons.MASK: 2}}, 0.75),
        ({"sparse": {"triton": 6}, "dense": {reasons.CROSS_ATTENTION: 6}}, 1.0),
    ],
)
def test_what_was_not_sparse_makes_the_row_invalid(timings, changes, share):
    (row,) = rows(make_case(Model(summary=summed(**changes))))
    assert row["sparse_share"] == share and row["valid"] == (share == 1)


def test_one_failure_costs_one_row(timings):
    class Broken(Model):
        def sparse(self, settings, work):
            if settings.precision == "8-bit":
                raise RuntimeError("no kernel image")
            return super().sparse(settings, work)

    found = rows(make_case(Broken()), precisions=["8-bit", "16-bit"])
    assert [row.get("failed", False) for row in found] == [True, False]
    assert found[0]["remark"] == "failed: RuntimeError: no kernel image"


def test_no_model_is_made_where_nothing_is_missing(timings, tmp_path):
    """And rows of another grid or number of layers are not taken for these."""
    path = tmp_path / "rows.json"
    where = {"device": "d", "torch": "t", "pack": "p"}
    kept = Rows(path, "k", where, resume=False)
    case = make_case(Model())
    for row in rows(case):
        kept.add(row)
    again = Rows(path, "k", where, resume=True)
    same, other = (
        forward.Case(lambda: pytest.fail("made"), {"dim": 256}, 2, grid, torch.device("cpu"), 3)
        for grid in ((2, 3, 4), (2, 4, 3))
    )
    assert rows(same, done=again.of(same.about())) == []
    with pytest.raises(pytest.fail.Exception):
        rows(other, done=again.of(other.about()))


def test_the_latent_is_a_clip_of_unit_size():
    latent = forward.drawn_latent((3, 4, 6))
    assert latent.shape == (1, 16, 3, 8, 12)
    assert latent.std((2, 3, 4)).sub(1).abs().max() < 1e-3
    assert torch.equal(latent, forward.drawn_latent((3, 4, 6)))
    # Neighbouring frames are alike, but not the same.
    first, second = forward.drawn_latent((12, 8, 12))[0, :, :2].flatten(2).unbind(1)
    assert 0.3 < torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), 0) < 0.99


def test_the_table_and_show(timings, tmp_path, capsys):
    path = tmp_path / "rows.json"
    kept = Rows(path, bench_forward.KIND, {"device": "d", "torch": "t", "pack": "p"}, resume=False)
    for row in rows(make_case(Model())):
        kept.add(row)
    assert main(["show", str(path)]) == 0
    said = capsys.readouterr().out
    header, _, cells = said.splitlines()[2:5]
    assert header.split()[:5] == ["what", "layers", "tokens", "grid", "pattern"]
    # The faster dense median over the slower sparse one.
    assert {"forward", "24", "2x3x4", "3.8%", "0.91"} <= set(cells.split())
    assert json.loads(path.read_text("utf-8"))["rows"][0]["machine"] in said
