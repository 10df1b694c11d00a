"""The help pages keep up with the code."""

import json
import re
from pathlib import Path

import pytest

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.comfy.families import FAMILIES
from dit_accel.accel.quant.formats.reading import READERS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "web" / "js" / "docs"
README = (ROOT / "README.md").read_text("utf-8")
SNAPSHOT = json.loads((ROOT / "tests" / "server" / "object_info.json").read_text("utf-8"))
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def one_line(page: str) -> str:
    return " ".join((DOCS / page).read_text("utf-8").split())


SPARSE = one_line("DitAccelSparseAttention.md")


def test_every_reason_to_stay_dense_is_explained():
    text = (DOCS / "DitAccelSparseAttention.md").read_text("utf-8")
    names = [value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 10
    assert [name for name in names if name not in text] == []


def test_every_preset_is_in_the_help_and_in_the_readme():
    help_text = (DOCS / "DitAccelBudget.md").read_text("utf-8")
    for name, budget in PRESETS.items():
        if name == "auto":
            continue
        numbers = f"{budget.top_p} | {budget.floor:.2f} | {budget.dense_first}"
        assert f"| {name} | {numbers} |" in help_text
        assert f"| `{name}` | {numbers} |" in README


def test_every_pattern_is_explained():
    assert [name for name in PATTERNS if f"- **{name}**" not in SPARSE] == []
    # Where the README counts them, it counts right.
    assert set(re.findall(r"one of (\w+) patterns", README)) <= {NUMBERS[len(PATTERNS) - 1]}


NAMES = r"(`\w+`(?:(?:, | and )`\w+`)*)"


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        (rf"- \*\*token_order\*\*: for {NAMES}, the order", lambda pattern: pattern.token_order),
        (rf"{NAMES} depend on the size of the video alone", lambda pattern: pattern.static),
        (rf"Only {NAMES} promise that", lambda pattern: not pattern.static),
    ],
    ids=["token_order", "static", "mass"],
)
def test_the_help_names_the_patterns_of_a_kind(sentence, wanted):
    (names,) = re.findall(sentence, SPARSE)
    assert set(re.findall(r"\w+", names.replace(" and ", " "))) == {name for name in PATTERNS if wanted(PATTERNS[name])}


def test_the_snapshot_offers_every_pattern():
    inputs = {given["name"]: given for given in SNAPSHOT["DitAccelSparseAttention"]["inputs"]}
    assert inputs["pattern"]["options"] == list(PATTERNS)


def test_every_model_is_in_the_help_and_the_first_of_a_maker_in_the_nodes_description():
    works = SPARSE[SPARSE.index("Works on ") : SPARSE.index("Any other model")]
    node = (ROOT / "nodes" / "sparse_attention.py").read_text("utf-8")
    makers = {}
    for path, family in FAMILIES.items():
        word = re.split(r"[ -]", family.name)[0]
        assert word in works, f"{family.name}: the help does not say {word}"
        makers.setdefault(path.split(".")[2], word)
    assert [word for word in makers.values() if word not in node] == []


@pytest.mark.parametrize(
    "file", ["web/js/docs/DitAccelLoadSVDQuant.md", "nodes/load_svdquant.py", "accel/cli/main.py", "README.md"]
)
def test_every_format_of_4_bit_models_is_named(file):
    text = (ROOT / file).read_text("utf-8")
    assert [reader.name for reader in READERS if reader.name not in text] == []


def test_every_node_has_a_page_and_a_line_in_the_readme():
    assert {page.stem for page in DOCS.glob("*.md")} == set(SNAPSHOT)
    assert [node for node in SNAPSHOT if f"| `{node}` |" not in README] == []
    for node, info in SNAPSHOT.items():
        page = one_line(f"{node}.md")
        assert [given["name"] for given in info["inputs"] if f"**{given['name']}**" not in page] == []
