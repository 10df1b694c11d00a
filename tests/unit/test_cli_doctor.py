"""The doctor on machines that are not like this one."""

import re
import shutil
import sysconfig

import pytest

from dit_accel.accel.cli import doctor, versions
from dit_accel.accel.cli.main import main
from dit_accel.accel.quant import compute
from dit_accel.kernels import registry


@pytest.fixture
def report(capsys):
    """Runs the doctor; its facts by name."""

    def run():
        assert main(["doctor"]) == 1  # kernels run in the interpreter here, which is no way to use the nodes
        facts = capsys.readouterr().out.split("\n\n")[0].splitlines()
        return dict(re.split(" {2,}", line, maxsplit=1) for line in facts)

    return run


def only(installed):
    return lambda distribution: installed.get(distribution)


def test_every_operation_is_listed(capsys):
    assert main(["doctor"]) == 1
    operations = capsys.readouterr().out.split("\n\n")[1]
    assert all(name in operations for name in registry.REQUIREMENTS)


def paths(capsys):
    """The table of 4-bit layers: (setting, kinds, path, reason)."""
    assert main(["doctor"]) == 1
    (table,) = (block for block in capsys.readouterr().out.split("\n\n") if block.startswith("compute"))
    lines = table.splitlines()
    return lines[0], [(*re.split(" {2,}", line), "")[:4] for line in lines[2:]]


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        ("sm_89", [("auto", "INT4", "w4a4"), ("auto", "AWQ", "w4a16"), ("w8a8", "INT4, NVFP4", "w8a8 int8")]),
        ("sm_90", [("auto", "INT4, NVFP4, AWQ", "w4a16"), ("w4a4", "INT4, NVFP4, AWQ", "refused")]),
        ("cpu", [("w8a8", "INT4, NVFP4, AWQ", "refused"), ("w4a16", "INT4, NVFP4, AWQ", "w4a16")]),
    ],
)
def test_4_bit_layers_and_their_paths(capsys, monkeypatch, chip, expected):
    monkeypatch.setattr(compute, "card_of", lambda device: compute.Card(chip))
    header, rows = paths(capsys)
    assert f"path on {chip}" in header
    assert all(any(row[:3] == wanted for row in rows) for wanted in expected)
    assert {row[0] for row in rows} == {*compute.COMPUTE, *compute.NOT_YET}
    refused = [row[3] for row in rows if row[2] == "refused"]
    assert all("not available yet" in reason or f"cannot run on {chip}" in reason for reason in refused)


def test_nothing_found(report, monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "version", only({"torch": "2.11.0"}))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    facts = report()
    assert facts["triton"] == "not installed"
    assert "install gcc" in facts["C compiler"]
    assert "install python3-dev" in facts["Python.h"]
    assert facts["ComfyUI"].endswith(f"found {tmp_path}")


def test_what_is_found_is_what_the_kernels_use(report, monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", "my-cc")
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    facts = report()
    assert facts["C compiler"] == "/opt/my-cc"
    assert facts["Python.h"] == str(tmp_path / "Python.h")


def test_no_torch(report, monkeypatch):
    monkeypatch.setattr(versions, "version", only({}))
    facts = report()
    assert facts["torch"].startswith("not installed")
    assert facts["GPU"] == facts["C compiler"] == "unknown without torch"


@pytest.mark.parametrize("name", ["triton", "triton-windows", "pytorch-triton-rocm", "triton-rocm"])
def test_triton_has_several_names(name, report, monkeypatch):
    monkeypatch.setattr(versions, "version", only({"torch": "2.11.0", name: "3.6.0"}))
    assert report()["triton"] == f"3.6.0 ({name})"


def test_comfyui_holds_this_pack(report, monkeypatch, tmp_path):
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.33.0"\n', "utf-8")
    (tmp_path / "custom_nodes").mkdir()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert report()["custom_nodes"] == "does not hold this pack"
    (tmp_path / "custom_nodes" / "ours").symlink_to(doctor.PACK)
    facts = report()
    assert facts["custom_nodes"] == "holds this pack as ours"
    assert facts["ComfyUI"] == f"{tmp_path} (0.33.0)"
