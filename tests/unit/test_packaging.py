"""What a wheel would hold, and what a node offers, follow from lists that a person keeps."""

import subprocess
import sys
from pathlib import Path

import pytest

from dit_accel.accel.version import PACK_VERSION
from dit_accel.tests.support.copies import copy_tree

ROOT = Path(__file__).resolve().parents[2]
TOP = ("accel", "kernels", "nodes")


def test_every_package_is_listed():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    files = [file for folder in TOP for file in (ROOT / folder).rglob("*.py")]
    packages = {".".join(("dit_accel", *file.parent.relative_to(ROOT).parts)) for file in files}
    assert set(project["tool"]["setuptools"]["packages"]) == packages | {"dit_accel"}


def test_the_contract_of_the_triton_kernels_names_all_that_stands_beside_them():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = (
        one
        for one in project["tool"]["importlinter"]["contracts"]
        if one.get("source_modules") == ["dit_accel.kernels.triton"]
    )
    beside = {file.stem for file in (ROOT / "kernels").glob("*.py")} - {"__init__", "registry"}
    assert set(contract["forbidden_modules"]) == {f"dit_accel.kernels.{name}" for name in beside}


def test_the_version_is_the_same_everywhere():
    assert f'version = "{PACK_VERSION}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"Version {PACK_VERSION}." in (ROOT / "README.md").read_text("utf-8")


def test_requirements_stay_empty():
    """ComfyUI-Manager installs them line by line into the user's environment."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert all(line.startswith("#") for line in lines)


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_passes_in_a_clone_of_any_name(tmp_path, command):
    """Whoever clones the repository gets a folder whose name is no Python name."""
    pytest.importorskip("ruff")
    clone = copy_tree(tmp_path / "dit-accel")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
