"""What a wheel would hold, and what a node offers, follow from lists that a person keeps."""

from pathlib import Path

import pytest

from dit_accel.accel.version import PACK_VERSION

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
