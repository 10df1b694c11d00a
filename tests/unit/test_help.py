"""The help pages keep up with the code."""

from pathlib import Path

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.budget import PRESETS

DOCS = Path(__file__).parents[2] / "web" / "js" / "docs"


def test_every_reason_to_stay_dense_is_explained():
    text = (DOCS / "DitAccelSparseAttention.md").read_text("utf-8")
    names = [value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 10
    assert [name for name in names if name not in text] == []


def test_every_preset_is_in_the_help_and_in_the_readme():
    help_text = (DOCS / "DitAccelBudget.md").read_text("utf-8")
    readme = (DOCS.parents[2] / "README.md").read_text("utf-8")
    for name, budget in PRESETS.items():
        if name == "auto":
            continue
        numbers = f"{budget.top_p} | {budget.floor:.2f} | {budget.dense_first}"
        assert f"| {name} | {numbers} |" in help_text
        assert f"| `{name}` | {numbers} |" in readme
