"""The gate: its cost model against published break-even lengths, its files, and what it does to a call."""

import json
import logging
import os
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.budget import PRESETS, Budget
from dit_accel.accel.attention.cost import fits, gate
from dit_accel.accel.attention.cost.costs import (
    Size,
    Terms,
    attend_work,
    break_even,
    dense_work,
    plan_work,
    predicted_costs,
    sparse_work,
    tree_samples,
)
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.planners.planning import Planning
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.bench import gate_fit
from dit_accel.accel.cli import bench_gate, needs
from dit_accel.accel.cli.main import main
from dit_accel.accel.comfy import folders as models
from dit_accel.accel.comfy.sparse import override
from dit_accel.accel.comfy.sparse.patch import Patch
from dit_accel.kernels import registry
from dit_accel.kernels.axis_tree import SAMPLES, levels
from dit_accel.tests.support.forwards import make_forward, make_run, outside_comfyui

SVG2 = PATTERNS["svg2"].planning
DENSITIES = (0.2, 0.3, 0.4)
# Break-even lengths in thousands of tokens by chip and heads, at DENSITIES, in 16 bits: specs of sparse attention 7.3,
# rows "H100, FA2-class", "RTX4090 bf16" and "RTX5090 bf16". They take 200 and 1000 clusters at any length, two rounds
# of k-means, and 1.2 products for each useful one.
PUBLISHED = {
    ("sm_90", 40): (11.6, 13.4, 16.4),
    ("sm_90", 24): (14.0, 16.2, 19.2),
    ("sm_90", 12): (18.4, 21.0, 24.8),
    ("sm_89", 40): (8.8, 10.4, 12.8),
    ("sm_89", 24): (10.4, 12.0, 14.6),
    ("sm_89", 12): (13.2, 15.0, 18.0),
    ("sm_120", 40): (9.4, 10.8, 13.2),
    ("sm_120", 24): (11.2, 12.8, 15.4),
    ("sm_120", 12): (14.4, 16.4, 19.6),
}


class PublishedPlanning(Planning):
    def blocks(self, video):
        return 200, 1000

    def padding(self, video):
        return 1.2


AS_PUBLISHED = PublishedPlanning(clusters=True)


def ratio(costs: Terms, size: Size, planning: Planning, density: float, bits: int = 16) -> float:
    return sparse_work(size, planning, density, bits, 2).milliseconds(costs) / dense_work(size).milliseconds(costs)


def video_size(tokens: int, heads: int = 40) -> Size:
    return Size(heads, tokens, tokens, 128)


@pytest.mark.parametrize(("chip", "heads"), PUBLISHED)
def test_break_even_lengths_are_the_published_ones_under_their_assumptions(chip, heads):
    costs = predicted_costs(chip)
    for density, expected in zip(DENSITIES, PUBLISHED[chip, heads], strict=True):
        found = break_even(costs, video_size(0, heads), AS_PUBLISHED, density, 16, 2)
        assert found == pytest.approx(expected * 1000, rel=0.06)


@pytest.mark.parametrize(("chip", "heads"), PUBLISHED)
def test_the_gate_opens_near_the_published_lengths(chip, heads):
    """With the pack's own numbers of clusters, their waste in tiles, and the margin of costs that nobody measured."""
    costs = predicted_costs(chip)
    costs = costs._replace(dense=costs.dense * gate.MARGIN)
    for density, expected in zip(DENSITIES, PUBLISHED[chip, heads], strict=True):
        found = break_even(costs, video_size(0, heads), SVG2, density, 16, 2)
        assert expected * 1000 / 1.5 < found < expected * 1000 * 1.5


@pytest.mark.parametrize(("chip", "heads"), PUBLISHED)
def test_the_gate_is_open_wherever_the_published_model_wins_by_a_fifth(chip, heads):
    costs, checked = predicted_costs(chip), 0
    for density in DENSITIES:
        for tokens in range(4000, 130_000, 500):
            size = video_size(tokens, heads)
            if ratio(costs, size, AS_PUBLISHED, density) <= 1 / 1.2:
                assert ratio(costs, size, SVG2, density) <= gate.MARGIN, (density, tokens)
                checked += 1
    assert checked > 300


@pytest.mark.parametrize("pattern", PATTERNS)
def test_monotone_in_tokens_and_density(pattern):
    costs, planning = predicted_costs("sm_90"), PATTERNS[pattern].planning
    lengths = [4096 << step for step in range(6)]
    ratios = [ratio(costs, video_size(tokens), planning, 0.3) for tokens in lengths]
    assert ratios == sorted(ratios, reverse=True)
    times = [
        sparse_work(video_size(tokens), planning, 0.3, 16, 2).milliseconds(costs) for tokens in range(2000, 99_000, 997)
    ]
    assert times == sorted(times)
    ratios = [ratio(costs, video_size(32_760), planning, density / 10) for density in range(11)]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 1


def test_eight_bits_cost_what_the_chips_peaks_say():
    for chip, gain in (("sm_90", 2.0), ("sm_80", 4 / 3), ("sm_89", 8 / 3), ("sm_100", 4 / 3), ("gfx1100", 1.0)):
        costs = predicted_costs(chip)
        assert costs.sparse_16bit / costs.sparse_8bit == pytest.approx(gain, rel=0.01)


def test_static_patterns_plan_next_to_nothing():
    costs, size = predicted_costs("sm_90"), video_size(32_760)
    static, clusters = (sparse_work(size, PATTERNS[name].planning, 0.0, 16, 2) for name in ("radial", "svg2"))
    assert static.assign == static.rounds == 0
    assert static.milliseconds(costs) < clusters.milliseconds(costs) / 3


@pytest.mark.parametrize(
    ("tokens", "query", "key"), [(8_640, 128, 64), (75_600, 128, 64), (119_056, 128, 64), (400, 32, 16)]
)
def test_trees_are_counted_node_by_node(tokens, query, key):
    """Their blocks fill tiles, and a later step plans no faster than the first."""
    planning = PATTERNS["tree"].planning
    for block, count in zip((query, key), planning.blocks(tokens), strict=True):
        leaves, depth = levels(tokens, block)
        assert count == leaves
        sampled = 0
        for level in range(depth):
            ends = [min((node * leaves >> level) * block, tokens) for node in range((1 << level) + 1)]
            sampled += sum(min(SAMPLES, end - begin) for begin, end in pairwise(ends))
        assert tree_samples(tokens, count) == pytest.approx(sampled, rel=0.03)
    assert planning.padding(tokens) == 1
    assert plan_work(video_size(tokens), planning, 2) == plan_work(video_size(tokens), planning, 8)


def timings(costs: Terms, noise: float = 0.0) -> list[gate_fit.Timing]:
    """What `measure` would find on a card of such costs."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for grid, heads in gate_fit.SIZES:
        tokens = grid[0] * grid[1] * grid[2]
        size = video_size(tokens, heads)
        works = [dense_work(size), *(gate_fit.plan_work(size, SVG2, rounds) for rounds in (2, 8))]
        works += [
            attend_work(size, planning, density, bits)
            for bits in (8, 16)
            for planning, density in ((Planning(), 0.15), (Planning(), 0.4), (SVG2, 0.16))
        ]
        for work in works:
            factor = 1 + noise * (2 * torch.rand(1, generator=generator).item() - 1)
            out.append(gate_fit.Timing("stand-in", size, 0.0, 16, work, work.milliseconds(costs) * factor))
    return out


KNOWN = Terms(dense=2.1, sparse_16bit=3.3, sparse_8bit=2.4, assign=5.0, traffic=0.4, calls=0.6, rounds=0.3)


def test_the_fit_recovers_known_costs():
    assert gate_fit.fit(timings(KNOWN)) == pytest.approx(KNOWN, rel=1e-6)
    noisy = gate_fit.fit(timings(KNOWN, noise=0.03))
    assert noisy == pytest.approx(KNOWN, rel=0.25)
    assert noisy != pytest.approx(KNOWN, rel=1e-3)


def test_a_cost_that_does_not_show_is_zero():
    nothing = [
        one._replace(milliseconds=one.milliseconds - 0.05 * one.work.rounds)
        for one in timings(KNOWN._replace(rounds=0.0))
    ]
    fitted = gate_fit.fit(nothing)
    assert fitted.rounds == 0
    assert min(fitted) == 0


def test_a_fit_of_too_little_names_what_is_missing():
    with pytest.raises(ValueError, match="found nothing of sparse_8bit"):
        gate_fit.fit([one for one in timings(KNOWN) if not one.work.sparse_8bit])


def test_measuring_times_all_that_the_fit_needs():
    """On the CPU and the PyTorch reference: the way through, not the times."""
    found = gate_fit.measure("cpu", torch.float32, "reference", 1, [((2, 8, 8), 1), ((3, 8, 12), 2)])
    costs = gate_fit.fit(found)
    assert costs.dense > 0
    assert len(found) == 18
    assert all(one.milliseconds > 0 for one in found)
    assert {one.name for one in found} == {"dense", "window", "svg2", "svg2 plan, 8 rounds", "svg2 plan, 2 rounds"}
    assert all(0.05 < one.density < 0.6 for one in found if one.name in ("window", "svg2"))
    assert "svg2 plan" in bench_gate.show(found, costs)


# Files


@pytest.fixture
def fit_file(tmp_path):
    fit = fits.Fit("stand-in card", fits.software(), KNOWN, tmp_path / "card.json")
    fits.write_fit(fit, [])
    return fit


def test_a_file_comes_back_as_it_was_written(fit_file):
    assert fits.read_fit(fit_file.path) == fit_file


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"format": "dit-accel/profile"}, "expected the format dit-accel/gate, version 1, found"),
        ({"version": 2}, "version 1, found"),
        ({"card": None}, "card: expected"),
        ({"software": {"torch": "2"}}, "software: expected"),
        ({"costs": {"dense": 1}}, "costs: expected"),
        ({"costs": {**KNOWN._asdict(), "dense": -1}}, "costs: expected"),
        ({"costs": {**KNOWN._asdict(), "calls": True}}, "costs: expected"),
        ({"costs": {**KNOWN._asdict(), "dense": 0}}, "dense cost above 0"),
    ],
)
def test_a_bad_file_is_named_and_ignored(fit_file, change, names, caplog):
    content = json.loads(fit_file.path.read_text("utf-8"))
    bad = fit_file.path.with_name("bad.json")
    bad.write_text(json.dumps({**content, **change}), "utf-8")
    with caplog.at_level(logging.WARNING):
        assert fits.read_fits([bad, fit_file.path]) == [fit_file]
    assert str(bad) in caplog.text
    assert names in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_what_is_no_json_object_is_named_and_ignored(tmp_path, caplog, text):
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    assert fits.read_fits([path]) == []
    assert str(path) in caplog.text


def text(content):
    return lambda path: path.write_bytes(content)


def linked(target):
    return lambda path: path.symlink_to(target)


BROKEN = {
    "nothing": text(b""),
    "deep": text(b"[" * 100_000),
    "digits": lambda path: path.write_text(
        json.dumps({"format": fits.FORMAT, "version": 1, "card": "c", "software": {"torch": "2", "triton": "3"}})[:-1]
        + f', "costs": {{"dense": {"9" * 401}}}}}'
    ),
    "words": lambda path: path.write_text(
        json.dumps({"format": fits.FORMAT, "version": 1, "card": "c", "software": {"torch": [], "triton": None}})
    ),
    "9 MB": text(b" " * (9 << 20)),
    "no text": text(b"\xff\xfe\xfd"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": linked("/dev/zero"),
    "a link to nothing": linked("/nothing/here"),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["bad.json", os.fsdecode(b"b\xe4d.json")])
def test_whatever_is_wrong_with_a_file_it_is_named_once_and_the_others_are_read(fit_file, make, name, caplog):
    bad = fit_file.path.with_name(name)
    make(bad)
    with caplog.at_level(logging.WARNING):
        assert fits.read_fits([bad, fit_file.path]) == [fit_file]
    (record,) = caplog.records
    written = str(bad).encode(errors="backslashreplace").decode()
    assert f"{written}: " in record.getMessage()
    assert "expected" in record.getMessage() and "found" in record.getMessage()
    record.getMessage().encode()


# Decisions


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(gate, "card_at", lambda device: gate.Here("stand-in card", "sm_90"))


CPU = torch.device("cpu")


def decide(one: gate.Gate, tokens: int, budget: Budget = PRESETS["faithful"], key="layer", warm=True) -> bool:
    return one.dense_is_faster(key, video_size(tokens), CPU, "svg2", budget, "16-bit", warm)


def test_short_calls_stay_dense_and_long_ones_do_not(card):
    one = gate.Gate()
    assert decide(one, 4_000)
    assert one.predicted
    assert not decide(gate.Gate(), 32_760)
    assert not decide(gate.Gate(), 75_600)


def test_without_memory_every_call_pays_for_a_first_plan(card):
    assert not decide(gate.Gate(), 20_000)
    assert decide(gate.Gate(), 20_000, warm=False)


def test_keeping_everything_stays_dense(card):
    assert decide(gate.Gate(), 75_600, Budget(top_p=1.0))
    assert not decide(gate.Gate(), 75_600, Budget(top_p=1.0, max_density=0.3))


def test_off_the_gpu_and_in_the_interpreter_nothing_is_kept_dense(monkeypatch):
    assert gate.card_at(CPU) is None
    assert gate.registry.interpreted()
    assert gate.card_at(torch.device("cuda")) is None
    assert not decide(gate.Gate(), 100, Budget(top_p=1.0))


def test_a_measured_density_counts_until_it_is_old(card):
    one = gate.Gate()
    one.learn({"layer": 0.9, "other": 0.1})
    assert decide(one, 75_600)
    assert not decide(one, 75_600, key="other")
    assert not decide(one, 75_600, key="unknown")
    for _ in range(gate.BELIEVED - 1):
        one.learn({})
        assert decide(one, 75_600)
    one.learn({})
    assert not decide(one, 75_600)


def test_measured_costs_count_without_a_margin(card, fit_file, caplog):
    slow = fit_file._replace(costs=KNOWN._replace(sparse_16bit=100.0))
    one = gate.Gate([fit_file._replace(card="another card"), slow])
    assert decide(one, 75_600)
    assert not one.predicted
    even = KNOWN._replace(sparse_16bit=KNOWN.dense / 0.3 / SVG2.padding(75_600), assign=0.0, traffic=0.0, rounds=0.0)
    assert decide(gate.Gate([fit_file._replace(costs=even)]), 75_600)
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_measurements_with_other_software_are_named_and_ignored(card, fit_file, caplog, name):
    old = fit_file._replace(software={**fit_file.software, name: "0.1"}, costs=KNOWN._replace(sparse_16bit=100.0))
    one = gate.Gate([old])
    assert not decide(one, 75_600)
    decide(one, 75_600)
    assert caplog.text.count(str(old.path)) == 1
    assert f"{name} 0.1" in caplog.text


def test_8_bits_are_faster_where_they_were_measured_to_be(card):
    device = torch.device("cuda")
    for costs, faster in ((KNOWN, True), (KNOWN._replace(sparse_8bit=KNOWN.sparse_16bit), False)):
        measured = gate.Gate([fits.Fit("stand-in card", fits.software(), costs, None)])
        assert measured.faster_at_8_bit(device) == faster
    assert not gate.Gate().faster_at_8_bit(device), "published rates are no measurement"
    assert not gate.Gate().faster_at_8_bit(torch.device("cpu"))


# The hook

LAYOUT = TokenLayout((2, 4, 8))


@pytest.fixture
def short(monkeypatch):
    outside_comfyui(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, LAYOUT.total, 64, generator=generator) for _ in range(3)]


def run_of(fallback: str, costs: Terms | None = None):
    run = make_run(fallback)
    if costs is not None:
        run.gate = gate.Gate([fits.Fit("stand-in card", fits.software(), costs, None)])
    return run


def attend(run, tensors, layout=LAYOUT, heads=1):
    forward = make_forward(run, layout)
    out = override.attention_override(
        lambda *_, **__: "dense", *tensors, heads=heads, transformer_options={override.FORWARD_KEY: forward}
    )
    return forward.statistics, out


def test_a_call_that_would_not_win_stays_dense_and_says_so(card, short):
    run = run_of("dense")
    statistics, out = attend(run, short)
    assert out == "dense"
    assert statistics.dense == {reasons.DENSE_FASTER: 1}
    assert not statistics.sparse
    run.add(statistics)
    line = run.close().line()
    assert f"{reasons.DENSE_FASTER} 1" in line
    assert "`dit-accel bench gate` measures this card" in line


def test_a_call_that_wins_is_sparse_and_the_run_learns_its_density(card, short):
    run = run_of("dense", KNOWN._replace(dense=1e9, calls=0.0))
    statistics, out = attend(run, short)
    assert statistics.sparse == {"triton 8-bit": 1}, "these costs say that 8 bits are faster"
    assert not statistics.dense
    assert out.shape == short[0].shape
    assert statistics.measured == {}
    run.add(statistics)
    ((key, (forward, density)),) = run.gate._densities.items()
    assert forward == 1
    assert key[1] == LAYOUT.total
    assert density == run.close().density
    assert 0.1 < density < 1


@pytest.fixture
def sparse_calls(monkeypatch):
    """Stands in for the sparse computation; the backends that it was to run on."""
    backends = []

    def stand_in(forward, layer, q, k, v, scale, backend):
        backends.append(backend)
        return torch.empty_like(q)

    monkeypatch.setattr(override, "sparse_attention", stand_in)
    return backends


@pytest.mark.parametrize("fallback", ["reference", "error"])
def test_what_asks_for_the_sparse_result_gets_it(card, short, sparse_calls, fallback):
    attend(run_of(fallback), short)
    assert sparse_calls == ["triton"]


def test_without_a_card_a_budget_of_everything_runs_sparse(short, sparse_calls):
    run = run_of("dense")
    run.budget = Budget(top_p=1.0)
    attend(run, short)
    assert sparse_calls == ["triton"]


@pytest.mark.parametrize(("grid", "kept"), [((4, 8, 8), True), ((21, 45, 80), False)])
def test_the_decision_reads_no_tensor(card, monkeypatch, sparse_calls, grid, kept):
    """Any read of a fake tensor raises."""
    outside_comfyui(monkeypatch)
    monkeypatch.setattr(registry, "choose", lambda *_, **__: ("triton", ""))
    layout = TokenLayout(grid)
    run = make_run("dense")
    run.gate.learn({"another layer": 0.5})
    with FakeTensorMode():
        tensors = [torch.empty(2, layout.total, 40 * 128, dtype=torch.bfloat16) for _ in range(3)]
        statistics, _ = attend(run, tensors, layout, heads=40)
    assert statistics.dense == ({reasons.DENSE_FASTER: 1} if kept else {})
    assert len(sparse_calls) == (not kept)


# From the command to the node


@pytest.fixture
def comfy_folder(tmp_path, monkeypatch):
    (tmp_path / "main.py").touch()
    monkeypatch.setattr(bench_gate, "find_comfyui", lambda: tmp_path)
    folders = {models.FOLDER: ([str(tmp_path / "models" / models.FOLDER)], {".safetensors"})}
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(folder_names_and_paths=folders))
    return tmp_path


@pytest.fixture
def measured(card, monkeypatch):
    monkeypatch.setattr(bench_gate, "kernel_problem", lambda *_: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gate_fit, "measure", lambda *_: timings(KNOWN))


def test_what_the_command_writes_the_next_run_reads(comfy_folder, measured, capsys):
    assert models.gate_files() == []
    assert main(["bench", "gate"]) == 0
    text = capsys.readouterr().out
    path = comfy_folder / "models" / "dit_accel" / "gate" / "stand_in_card.json"
    assert f"Wrote {path}" in text
    assert "ms a round of k-means" in text and "40 heads" in text
    assert len(json.loads(path.read_text("utf-8"))["points"]) == len(timings(KNOWN))
    (fit,) = started().gate._fits
    assert (fit.card, fit.path) == ("stand-in card", path)
    assert fit.costs == pytest.approx(KNOWN, rel=1e-6)


def started():
    """A run as it is at the start of sampling."""
    sampling = SimpleNamespace(percent_to_sigma=lambda percent: 1 - percent)
    patcher = SimpleNamespace(
        model=SimpleNamespace(diffusion_model=torch.nn.Identity()), get_model_object=lambda name: sampling
    )
    return Patch(Settings())._start(patcher, torch.linspace(1, 0, 5))


def test_sampling_starts_beside_broken_files(comfy_folder, card, caplog):
    folder = comfy_folder / "models" / "dit_accel" / "gate"
    folder.mkdir(parents=True)
    for number, make in enumerate(BROKEN.values()):
        make(folder / f"bad {number}.json")
    good = fits.Fit("stand-in card", fits.software(), KNOWN, folder / "card.json")
    fits.write_fit(good, [])
    with caplog.at_level(logging.WARNING):
        assert started().gate._fits == [good]
    assert [record.getMessage().count(str(folder)) for record in caplog.records] == [1] * len(BROKEN)


def test_a_file_in_the_place_of_the_gates_folder_is_no_folder(comfy_folder):
    place = comfy_folder / "models" / "dit_accel" / "gate"
    place.parent.mkdir(parents=True)
    place.touch()
    assert models.gate_files() == []


def test_a_comfyui_without_our_folder_has_no_files(monkeypatch):
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(folder_names_and_paths={}))
    assert models.gate_files() == []


def test_json_names_another_file(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gate, "find_comfyui", lambda: None)
    path = tmp_path / "here.json"
    assert main(["bench", "gate", "--json", str(path)]) == 0
    assert fits.read_fit(path).costs == pytest.approx(KNOWN, rel=1e-6)


def test_what_is_missing_is_one_sentence(measured, capsys, monkeypatch):
    monkeypatch.setattr(bench_gate, "find_comfyui", lambda: None)
    assert main(["bench", "gate"]) == 1
    assert "--json: expected a file to write to" in capsys.readouterr().err
    monkeypatch.setattr(bench_gate, "kernel_problem", needs.kernel_problem)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "gate"]) == 1
    assert "no kernel can run here: no GPU" in capsys.readouterr().err
