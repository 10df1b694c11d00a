"""What the repository shows the world: workflows, templates, changelog, archive, and the commands that pages name."""

import re
from pathlib import Path

import pytest

from dit_accel.accel.cli import main as command_line
from dit_accel.accel.version import PACK_VERSION
from dit_accel.tests.bench import __main__ as benches
from dit_accel.tests.support.copies import tracked

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/bench/README.md", "tests/golden/README.md")


def load(path: Path):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text("utf-8"))


def steps_of(workflow: str) -> list[dict]:
    (job,) = load(GITHUB / "workflows" / workflow)["jobs"].values()
    return job["steps"]


def test_the_tests_run_where_there_is_a_comfyui():
    scripts = [step["run"] for step in steps_of("ci.yml") if "run" in step]
    assert scripts[-1] == ".ci/run" and (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert any("git clone" in script and "COMFYUI_PATH=" in script for script in scripts[:-1])
    tag = load(GITHUB / "workflows" / "ci.yml")["env"]["COMFYUI_TAG"]
    assert f'requires-comfyui = ">={tag.removeprefix("v")}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_a_new_version_is_published_from_main():
    # YAML takes the key `on` for a truth.
    events = load(GITHUB / "workflows" / "publish.yml")[True]
    assert events["push"] == {"branches": ["main"], "paths": ["pyproject.toml"]} and "workflow_dispatch" in events
    (step,) = (step for step in steps_of("publish.yml") if "publish-node-action" in step.get("uses", ""))
    assert step["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}


@pytest.mark.parametrize("form", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.name)
def test_a_form_asks(form):
    content = load(form)
    if form.name == "config.yml":
        for link in content["contact_links"]:
            path, _, anchor = link["url"].partition("/blob/main/")[2].partition("#")
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text("utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
        return
    assert content["name"] and content["description"]
    identifiers = [part["id"] for part in content["body"]]
    assert len(set(identifiers)) == len(identifiers) > 0
    assert all(part["attributes"]["label"] for part in content["body"])


def test_the_hooks_run_what_the_linters_of_ci_run():
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff-check", "ruff-format"}


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" and PACK_VERSION in headings


def test_the_licence_names_its_owner():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert re.search(r"Copyright 20\d\d the DiT Accel authors", text) and "[yyyy]" not in text


def test_the_registrys_archive_holds_what_users_need():
    left_out = set(tracked("--cached", "--ignored", "--exclude-from=.comfyignore"))
    # What is not committed yet counts too.
    left_out |= set(tracked("--others", "--ignored", "--exclude-from=.comfyignore"))
    shipped = set(tracked("--cached")) - left_out
    assert {name.split("/")[0] for name in shipped} <= {
        *("__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "CHANGELOG.md"),
        *("accel", "kernels", "nodes", "web", "workflows"),
    }
    for folder in ("accel", "kernels", "nodes", "web", "workflows"):
        assert {name for name in left_out if name.startswith(f"{folder}/")} <= {"kernels/ROOFLINE.md"}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= shipped


def commands():
    """Every command that a page names: (page, program, its first words)."""
    found = set()
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for subject in re.findall(r"python -m dit_accel\.tests\.bench (\w+)", text):
            found.add((page, "benches", subject))
        for words in re.findall(r"`dit-accel ((?:bench )?[a-z-]+)", text):
            found.add((page, "command_line", words))
    return sorted(found)


@pytest.mark.parametrize(("page", "program", "words"), commands())
def test_a_command_that_a_page_names_is_there(page, program, words, capsys):
    if page == "CHANGELOG.md" and program == "command_line":
        # The changelog also names what is gone.
        return
    main = {"benches": benches.main, "command_line": command_line.main}[program]
    with pytest.raises(SystemExit) as left:
        main([*words.split(), "--help"])
    assert left.value.code == 0, capsys.readouterr().err
