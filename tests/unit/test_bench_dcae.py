"""The bench of autoencoders: every way's row, what was timed is what is judged, diffusers missing is said."""

import json
import sys

import pytest
import torch

from dit_accel.accel.dcae.config import CONFIGS
from dit_accel.tests.bench import dcae
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.support.dcae_networks import VARIANTS

WAYS = [dcae.WHOLE, dcae.STRIPS, dcae.DIFFUSERS, dcae.TILED]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def case():
    return dcae.drawn(VARIANTS["sana"], torch.device("cpu"), torch.float32, 2, 1)


def never(**fields):
    return False


def test_every_way_gives_the_same_picture(case):
    rows = list(dcae.rows_of(case, 96, never))
    assert [(row["part"], row["way"]) for row in rows] == [(part, way) for part in dcae.PARTS for way in WAYS]
    assert all(row["valid"] and row["error"] < 1e-4 for row in rows)
    peaks = {(row["part"], row["way"]): row["peak_bytes"] for row in rows}
    for part in dcae.PARTS:
        assert peaks[part, dcae.STRIPS] < peaks[part, dcae.WHOLE] < peaks[part, dcae.DIFFUSERS]


def test_16_bits_have_an_error_of_their_own():
    case = dcae.drawn(VARIANTS["in"], torch.device("cpu"), torch.bfloat16, 2, 1)
    errors = [row["error"] for row in dcae.rows_of(case, 64, never)]
    assert all(1e-4 < error < 0.1 for error in errors)


def test_without_diffusers_its_rows_say_why(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    rows = list(dcae.rows_of(case, 32, lambda **fields: fields["part"] == "encode"))
    assert [row["valid"] for row in rows] == [True, True, False, False]
    assert rows[2]["remark"] == "skipped: diffusers is not installed (pip install diffusers)"


def test_one_failure_costs_one_row(case, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(dcae, "diffusers_twin", fail)
    rows = list(dcae.rows_of(case, 32, never))
    assert [row.get("failed", False) for row in rows] == [False, False, True, True] * 2
    assert rows[2]["remark"] == "failed: RuntimeError: out of memory"


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CONFIGS, "tiny", VARIANTS["sana"])
    path = tmp_path / "rows.json"
    command = ["dcae", "--variant", "tiny", "--pixels", "64", "--rows", "2", "--repeats", "1"]
    assert main([*command, "--json", str(path)]) == 0
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["part"], row["way"]) for row in rows] == [(part, way) for part in dcae.PARTS for way in WAYS]
    assert main([*command, "--json", str(path), "--resume"]) == 0
    assert json.loads(path.read_text("utf-8"))["rows"] == rows
    capsys.readouterr()
    assert main(["show", str(path)]) == 0
    assert "diffusers tiled" in capsys.readouterr().out


def test_what_cannot_be_asked(capsys):
    assert main(["dcae", "--variant", "unknown"]) == 1
    assert "--variant: expected one of f32c32-in-1.0" in capsys.readouterr().err
    assert main(["dcae", "--pixels", "100"]) == 1
    assert "--pixels: expected multiples of 32, found 100" in capsys.readouterr().err
