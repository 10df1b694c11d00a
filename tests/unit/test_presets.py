"""The browser shows the numbers that Python uses."""

import json
import re
from pathlib import Path

from dit_accel.accel.attention.budget import PRESETS, parse_blocks

JS = Path(__file__).parents[2] / "web" / "js" / "presets.js"


def test_the_browsers_presets_are_ours():
    text = re.search(r"export const PRESETS = (\{.*\});", JS.read_text("utf-8"), re.DOTALL)[1]
    shown = json.loads(text)
    assert shown.keys() == PRESETS.keys()
    for name, budget in PRESETS.items():
        numbers = shown[name]
        assert parse_blocks(numbers.pop("dense_blocks")) == budget.dense_blocks
        assert numbers == {number: getattr(budget, number) for number in numbers}
        assert numbers.keys() | {"preset", "dense_blocks", "profile"} == set(vars(budget))
