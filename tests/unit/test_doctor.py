"""The doctor's verdict: what does not run, why, what to do next, and the exit status that scripts read."""

import pytest
import torch

from dit_accel.accel.cli import doctor, operations
from dit_accel.accel.cli.main import main
from dit_accel.kernels import registry
from dit_accel.kernels.registry import Row


@pytest.fixture
def on_two_gpus(monkeypatch, tmp_path):
    """Two equal cards; set_reasons(operation=reason) says what cannot run there."""
    reasons = {}

    def rows(device):
        return [
            row
            for name in registry.REQUIREMENTS
            for row in (
                Row(name, "triton", name not in reasons, reasons.get(name, "")),
                Row(name, "reference", True, ""),
            )
        ]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    monkeypatch.setattr(registry, "operations", rows)
    monkeypatch.setattr(registry, "interpreted", lambda: False)
    monkeypatch.setattr(doctor, "_gpu", lambda: "2 of NVIDIA Test")
    monkeypatch.setattr(doctor, "_compute", lambda: "")
    monkeypatch.setattr(doctor, "find_comfyui", lambda: tmp_path)
    return reasons.update


def verdict(capsys) -> str:
    out = capsys.readouterr().out
    return out[out.index("verdict") :]


def test_everything_runs_is_status_0(on_two_gpus, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("runs on NVIDIA Test") == 1, "one table for equal cards"
    assert "verdict    everything runs\nnext step  none" in out


def test_an_operation_without_a_kernel_is_named_with_its_reason_and_a_next_step(on_two_gpus, capsys):
    on_two_gpus(rowwise="its kernels do not compile here: CompilationError: at 3:4", kmeans="its kernels cannot be ...")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert "rowwise in PyTorch its kernels do not compile here" in words
    assert "kmeans in PyTorch, where that is faster its kernels cannot be" in words
    assert "1 of 13 operations have no kernel on NVIDIA Test (rowwise): its kernels do not compile here: Comp" in out
    assert out.count("next step  use Triton 3.3 to 3.9 (found ") == 1


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("triton is not installed", "pip install triton"),
        ("no C compiler (install gcc)", "gcc"),
        ("no Python headers (install python3-dev)", "python3-dev"),
        ("triton cannot be imported (libtriton.so)", "use Triton 3.3 to 3.9"),
        ("GPU older than sm_80", "nothing to install"),
    ],
)
def test_every_reason_has_a_next_step(on_two_gpus, capsys, reason, remedy):
    on_two_gpus(dict.fromkeys(registry.REQUIREMENTS, reason))
    assert main(["doctor"]) == 1
    said = verdict(capsys)
    assert f"13 of 13 operations have no kernel on NVIDIA Test: {reason}" in said
    assert remedy in said.partition("next step")[2]


def test_the_interpreter_is_no_gpu(on_two_gpus, monkeypatch, capsys):
    monkeypatch.setattr(registry, "interpreted", lambda: True)
    assert main(["doctor"]) == 1
    assert "unset TRITON_INTERPRET" in verdict(capsys)


def test_without_a_gpu_or_a_comfyui_it_says_so(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "find_comfyui", lambda: None)
    registry.triton_problem.cache_clear()
    assert main(["doctor"]) == 1
    registry.triton_problem.cache_clear()
    said = verdict(capsys)
    assert "no ComfyUI was found" in said and "set COMFYUI_PATH" in said and "no GPU (device is cpu)" in said


def test_help_documents_the_exit_status(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "Exit status: 0 where everything runs" in " ".join(capsys.readouterr().out.split())


def test_all_operations_that_are_said_to_run_in_pytorch_exist():
    assert set(operations.IN_PYTORCH) <= set(registry.REQUIREMENTS)
