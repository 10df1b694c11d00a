"""CONTRIBUTING.md's recipes, followed in a copy of the tree: they name all that has to be edited, and whoever leaves a
step out is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dit_accel.tests.support.copies import copy_tree
from dit_accel.tests.support.toys import family, format, pattern

pytestmark = pytest.mark.thorough

TOYS = {"pattern": pattern, "family": family, "format": format}
RECIPES = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
HEADINGS = {
    "pattern": "## Add an attention pattern",
    "family": "## Add a model family",
    "format": "## Add a format of 4-bit models",
}


class Tree:
    """A copy that can be edited and put back, and its tests in a process that imports the copy."""

    def __init__(self, folder: Path) -> None:
        self.root = copy_tree(folder / "dit-accel")
        # Some tests ask git for the files that there are.
        for command in (["init", "-q"], ["add", "--all"]):
            subprocess.run(["git", *command], cwd=self.root, check=True)
        site = folder / "site"
        site.mkdir()
        (site / "dit_accel").symlink_to(self.root)
        plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        # With CI set, a test of the real thing that is skipped fails.
        self.environment = {**plain, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "CI": "true"}
        self.before: dict[Path, str | None] = {}

    def follow(self, steps) -> None:
        for step in steps:
            path = self.root / step.file
            before = path.read_text("utf-8") if path.exists() else None
            self.before.setdefault(path, before)
            path.write_text(step.edit(before, self.root), "utf-8")

    def put_back(self) -> None:
        for path, text in self.before.items():
            if text is None:
                path.unlink()
            else:
                path.write_text(text, "utf-8")
        self.before.clear()

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *command], cwd=self.root, env=self.environment, capture_output=True, text=True
        )

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


@pytest.fixture(scope="module")
def copied(comfyui, tmp_path_factory):
    tree = Tree(tmp_path_factory.mktemp("recipes"))
    assert tree.run("-c", "import dit_accel; print(dit_accel.__path__)").stdout.count("site/dit_accel") == 1
    return tree


@pytest.fixture
def tree(copied):
    yield copied
    copied.put_back()


def recipe(toy: str) -> str:
    return RECIPES.split(HEADINGS[toy])[1].split("\n## ")[0]


@pytest.mark.parametrize("toy", TOYS)
def test_the_recipe_names_every_file_of_its_steps(toy):
    text, made = recipe(toy), TOYS[toy]
    files = {step.file.replace(made.FILE, made.PLACE) for step in made.STEPS.values()}
    assert {file for file in files if f"`{file}`" not in text} == set()


@pytest.mark.parametrize("toy", TOYS)
def test_its_steps_are_enough(tree, toy):
    tree.follow(TOYS[toy].STEPS.values())
    for arguments in TOYS[toy].TESTS:
        done = tree.pytest(*arguments)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    done = tree.run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("toy", "left_out"), [(name, step) for name, toy in TOYS.items() for step in toy.FINDS])
def test_a_step_that_is_left_out_is_found(tree, toy, left_out):
    steps = TOYS[toy].STEPS
    tree.follow(step for name, step in steps.items() if name != left_out)
    done = tree.pytest(*TOYS[toy].FINDS[left_out])
    assert done.returncode == 1 and " failed" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
