"""The command line: what it says when something is missing, and what the demo accepts as a result."""

import json
import subprocess
import sys

import pytest
import torch

from dit_accel.accel.cli import Problem, demo, demo_graph, demo_model, demo_report, doctor
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


def test_doctor_names_every_operation_and_succeeds(capsys):
    from dit_accel.kernels import registry

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("python", "torch", "triton", "C compiler", "GPU", "ComfyUI", *registry.REQUIREMENTS):
        assert name in text


def test_doctor_works_without_torch_and_comfyui(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda distribution: None)
    monkeypatch.setattr(doctor, "find_comfyui", lambda: None)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "not installed: ComfyUI's requirements bring it" in text
    assert "set COMFYUI_PATH" in text


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


def make_report(log=NUMBERS, change=0.1):
    frames = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    latent = demo_graph.to_latent(frames)
    results = Result(latent, 2.0, None), Result(latent * (1 - change), 1.0, log)
    return results, demo_report.make_report(*results, frames, steps=3, top_p=0.9)


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
    ],
)
def test_a_run_that_proves_nothing_fails(changes, words):
    with pytest.raises(Problem, match=words):
        demo_report.check(make_report(**changes)[1])


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


def test_table_aligns_its_columns():
    assert table(("a", "long"), [("xyz", "1")]) == "a    long\n---  ----\nxyz  1"
