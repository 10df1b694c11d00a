"""CI's script with stand-ins for what it installs and runs: which ComfyUI its tests see."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Says what it was called with. As `python3 -m venv` it makes an environment of more of itself, as `python -c` it names
# the Tritons, and as `pip install ... --target` it unpacks one.
TOOL = """#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"
    for tool in python pip pytest ruff lint-imports mypy; do cp "$0" "$3/bin/$tool"; done
fi
[ "$1" != "-c" ] || echo 3.3.1 3.9.0
[ "$5" != "--target" ] || mkdir -p "$6"
echo "$(basename "$(dirname "$(dirname "$0")")")|$COMFYUI_PATH|${CI:-}|$(basename "$0") $*" >> "$CALLS"
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script with these variables set; returns its calls as (environment, COMFYUI_PATH, CI, command)."""
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    for name in ("python3", "chromium"):
        (tools / name).write_text(TOOL, "utf-8")
        (tools / name).chmod(0o755)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COMFYUI_PATH")}

    def script(**variables):
        calls.write_text("", "utf-8")
        environment = {
            **plain,
            "PATH": f"{tools}:{plain['PATH']}",
            "XDG_CACHE_HOME": str(tmp_path),
            "CALLS": str(calls),
            **{name: str(value) for name, value in variables.items()},
        }
        done = subprocess.run([ROOT / ".ci/run"], env=environment, capture_output=True, text=True)
        return done, [tuple(line.split("|")) for line in calls.read_text("utf-8").splitlines()]

    return script


@pytest.fixture
def checkout(tmp_path):
    def make(name: str, requirements: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "main.py").touch()
        (folder / "requirements.txt").write_text(requirements, "utf-8")
        return folder

    return make


def is_bare(environment: str) -> bool:
    return environment.startswith("bare-")


def pytest_calls(calls):
    """Those beside a ComfyUI."""
    return [call for call in calls if call[3].startswith("pytest") and not is_bare(call[0])]


def test_one_checkout(run, checkout, tmp_path):
    old = checkout("old", "a")
    done, calls = run(COMFYUI_PATH=old)
    assert done.returncode == 0, done.stderr
    first, *tiers = [command for *_, command in pytest_calls(calls)]
    assert first == "pytest --durations=15"
    kept = f" -o cache_dir={tmp_path}/dit-accel-ci/compiled"
    assert tiers[:2] == [f"pytest -m {tier}" for tier in (f"matrix{kept}", f"thorough{kept}")]
    # Side by side.
    assert sorted(tiers[2:]) == ["pytest -m browser", "pytest -m slow"]
    assert {path for _, path, *_ in pytest_calls(calls)} == {str(old)}
    assert all(ci for _, _, ci, _ in pytest_calls(calls))
    linters = [command for *_, command in calls if command.startswith(("ruff", "lint-imports", "mypy"))]
    assert linters == ["ruff check .", "ruff format --check .", "lint-imports ", "mypy "]


def test_tritons_are_fetched_once(run, checkout, tmp_path):
    old = checkout("old", "a")
    _, calls = run(COMFYUI_PATH=old)
    fetched = [command.split()[-1] for *_, command in calls if "--target" in command]
    assert fetched == ["triton==3.3.1", "triton==3.9.0"]
    assert {folder.name for folder in (tmp_path / "dit-accel-ci" / "tritons").iterdir()} == {"3.3.1", "3.9.0"}
    _, again = run(COMFYUI_PATH=old)
    assert not any("--target" in command for *_, command in again)


@pytest.mark.parametrize("tier", ["slow", "browser", "thorough"])
def test_a_tier_that_fails(run, checkout, tmp_path, tier):
    tool = TOOL + f'[[ "$*" != "-m {tier}"* ]]\n'
    for name in ("python3", "chromium"):
        (tmp_path / "tools" / name).write_text(tool, "utf-8")
    done, calls = run(COMFYUI_PATH=checkout("old", "a"))
    assert done.returncode
    assert not [command for environment, *_, command in calls if is_bare(environment)]


def test_as_somebody_without_a_comfyui(run, checkout, tmp_path):
    """The README's two words and no more, in an environment that is kept and follows the tree to another folder; skips
    are no failures."""
    old = checkout("old", "a")
    done, calls = run(COMFYUI_PATH=old, CI="true")
    assert done.returncode == 0, done.stderr
    *made, (environment, path, ci, command) = [call for call in calls if is_bare(call[0])]
    follow = "pip install -q --no-deps -e ."
    assert [command for *_, command in made] == ["pip install -q -e .[test]", follow]
    assert (command.strip(), ci) == ("pytest", "")
    assert path and not (tmp_path / path).exists()
    assert (tmp_path / "dit-accel-ci" / environment / "ready").exists()
    _, again = run(COMFYUI_PATH=old)
    assert [command for *_, command in [call for call in again if is_bare(call[0])]] == [follow, "pytest "]


@pytest.mark.parametrize("requirements", ["a", "b"])
def test_a_second_checkout(run, checkout, tmp_path, requirements):
    """It gets an environment of its own where its requirements differ, and both are kept for the next time."""
    old, new = checkout("old", "a"), checkout("new", requirements)
    run(COMFYUI_PATH=checkout("forgotten", "c"))
    done, calls = run(COMFYUI_PATH=old, COMFYUI_PATH_NEXT=new)
    assert done.returncode == 0, done.stderr
    *before, (environment, path, _, command) = pytest_calls(calls)
    assert {path for _, path, *_ in before} == {str(old)}
    assert (path, command) == (str(new), "pytest tests/comfy tests/server")
    (first,) = {environment for environment, *_ in before}
    assert (environment == first) == (requirements == "a")
    installed = [(environment, command) for environment, *_, command in calls if "pip install -q -r" in command]
    assert installed[-1] == (environment, f"pip install -q -r {old if requirements == 'a' else new}/requirements.txt")
    kept = {folder.name for folder in (tmp_path / "dit-accel-ci").iterdir()}
    assert {name for name in kept if not is_bare(name)} == {first, environment, "tritons"}
    _, again = run(COMFYUI_PATH=old, COMFYUI_PATH_NEXT=new)
    assert sorted(pytest_calls(again)) == sorted(pytest_calls(calls))
    assert not any("pip install -q -r" in command for *_, command in again)


def test_a_second_checkout_that_is_not_there(run, checkout, tmp_path):
    done, calls = run(COMFYUI_PATH=checkout("old", "a"), COMFYUI_PATH_NEXT=tmp_path / "nothing")
    assert done.returncode == 1
    assert f"no ComfyUI at {tmp_path / 'nothing'}: set COMFYUI_PATH_NEXT" in done.stderr
    assert not calls
