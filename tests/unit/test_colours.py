"""The browser's report has the colours of the pictures, and calls the parts of the time the same."""

import json
import re
from pathlib import Path

from dit_accel.accel.report.bar_chart import TIME_COLOURS
from dit_accel.accel.report.figures import TIME_NAMES
from dit_accel.accel.report.scale import GREEN_BLUE, PEACH_PURPLE

JS = Path(__file__).parents[2] / "web" / "js"


def constant(file: str, name: str) -> dict:
    text = re.search(rf"const {name} = (\{{.*?\n\}});", (JS / file).read_text("utf-8"), re.DOTALL)[1]
    return json.loads(re.sub(r",(\s*\})", r"\1", re.sub(r"^(\s*)(\w+):", r'\1"\2":', text, flags=re.MULTILINE)))


def test_the_scales_are_those_of_the_pictures():
    scales = {"density": GREEN_BLUE, "error": PEACH_PURPLE}
    assert constant("colours.js", "SCALES") == json.loads(json.dumps(scales))


def test_the_times_have_the_same_colours_and_names():
    assert constant("colours.js", "TIMES") == json.loads(json.dumps(TIME_COLOURS))
    names = constant("view.js", "TIME_LABELS")
    assert names == TIME_NAMES and list(names) == list(TIME_NAMES)
