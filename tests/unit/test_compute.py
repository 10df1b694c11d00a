"""The dispatch table on stand-in cards: which path, why, and the numbers of that path."""

from dataclasses import replace

import pytest
import torch

from dit_accel.accel.quant import compute
from dit_accel.accel.quant.compute import FP8, INT8, W4A4, W4A16, Card, Choice, card_of, choose, summary, usable
from dit_accel.accel.quant.linear import quantised_linear
from dit_accel.accel.quant.weight4 import E2M1, Weight4, dequantise
from dit_accel.tests.support.interpreter import fp8_as_hardware_rounds_it  # noqa: F401

MISSING = "not there"
CPU = Card("cpu", MISSING, MISSING, MISSING, MISSING)
SVDQUANT = Weight4(
    torch.randint(-128, 128, (32, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0)),
    torch.full((2, 32), 0.125, dtype=torch.bfloat16),
)
UNSIGNED = replace(SVDQUANT, unsigned_from=0)
MIXED = replace(SVDQUANT, unsigned_from=64)
AWQ = replace(SVDQUANT, zero=torch.ones(2, 32, dtype=torch.bfloat16))
NVFP4 = replace(SVDQUANT, scale=torch.ones(8, 32).to(torch.float8_e4m3fn), grid=E2M1)
WEIGHTS = {"svdquant": SVDQUANT, "unsigned": UNSIGNED, "mixed": MIXED, "awq": AWQ, "nvfp4": NVFP4}

REFUSED = "refused"
# setting, chip -> the path of an ordinary layer where all libraries are there
TABLE = {
    "auto": {"sm_80": W4A4, "sm_86": W4A4, "sm_89": W4A4} | dict.fromkeys(("sm_75", "sm_90", "sm_120", "cpu"), W4A16),
    "w4a4": {"sm_80": W4A4, "sm_86": W4A4, "sm_89": W4A4}
    | dict.fromkeys(("sm_75", "sm_90", "sm_100", "sm_103", "sm_120", "gfx942", "gfx1100", "cpu"), REFUSED),
    "w8a8": dict.fromkeys(("sm_89", "sm_90", "sm_100", "sm_120", "sm_121"), INT8)
    | {"sm_103": FP8}
    | dict.fromkeys(("sm_75", "sm_80", "sm_86", "gfx942", "gfx1201", "cpu"), REFUSED),
    "w4a16": dict.fromkeys(("sm_75", "sm_80", "sm_90", "sm_120", "gfx942", "gfx1100", "cpu"), W4A16),
}
CELLS = [(setting, chip, path) for setting, row in TABLE.items() for chip, path in row.items()]


def card(chip):
    return CPU if chip == "cpu" else Card(chip)


@pytest.mark.parametrize(("setting", "chip", "path"), CELLS)
def test_the_table(setting, chip, path):
    if path == REFUSED:
        with pytest.raises(
            ValueError, match=rf"^compute: {setting} cannot run on {chip} \(.+\); choose auto or w4a16$"
        ):
            choose(setting, SVDQUANT, card(chip))
    else:
        choice = choose(setting, SVDQUANT, card(chip))
        assert choice.path == usable(setting, card(chip)) == path
        assert bool(choice.reason) == (path not in (setting, compute.COMPUTE[setting][0]))


@pytest.mark.parametrize(("setting", "chip", "path"), [cell for cell in CELLS if cell[2] != REFUSED])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_layer_runs_on_the_path_that_was_chosen(setting, chip, path, kind):
    weight = WEIGHTS[kind]
    choice = choose(setting, weight, card(chip))
    if kind == "awq" or (kind == "nvfp4" and path == W4A4):
        path = W4A16
        assert chip not in ("sm_80", "sm_86", "sm_89") or setting == "w4a16" or choice.reason
    assert choice.path == path
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(1)).abs().bfloat16()
    exact = x.double() @ dequantise(weight).double().T
    wrong = quantised_linear(x, weight, None, choice.path).double() - exact
    assert wrong.norm() < {W4A16: 0.005, W4A4: 0.12, INT8: 0.02, FP8: 0.05}[path] * exact.norm()


def test_reasons_are_the_machines():
    with pytest.raises(ValueError, match=r"sm_90 \(no INT4 matrix instructions on sm_90 and newer\)"):
        usable("w4a4", Card("sm_90"))
    with pytest.raises(ValueError, match=r"w4a4 cannot run on sm_89 \(not there\)"):
        usable("w4a4", Card("sm_89", kitchen=MISSING))
    with pytest.raises(ValueError, match=r"w8a8 int8: no INT8; w8a8 fp8: no FP8"):
        usable("w8a8", Card("sm_90", int_mm="no INT8", scaled_mm="no FP8"))
    with pytest.raises(ValueError, match=r"w8a8 int8: runs on NVIDIA GPUs only"):
        usable("w8a8", CPU)


def test_what_is_missing_is_passed_by():
    assert choose("auto", SVDQUANT, Card("sm_89", kitchen=MISSING)) == Choice(W4A16, "w4a4: not there")
    assert choose("w8a8", SVDQUANT, Card("sm_90", int_mm=MISSING)) == Choice(FP8, "w8a8 int8: not there")
    assert choose("w8a8", AWQ, Card("sm_90")) == Choice(W4A16, "zero points")
    assert choose("w4a4", NVFP4, Card("sm_89")) == Choice(W4A16, "grid e2m1")
    odd = replace(SVDQUANT, unsigned_from=32)
    assert choose("w4a4", odd, Card("sm_89")) == Choice(W4A16, "signs mixed within a group")


@pytest.mark.parametrize("setting", compute.NOT_YET)
def test_settings_to_come(setting):
    with pytest.raises(ValueError, match=f"^compute: {setting} is not available yet"):
        choose(setting, SVDQUANT, Card("sm_120"))


def test_unknown_setting():
    with pytest.raises(
        ValueError, match=r"^compute: expected one of auto, w4a4, w8a8, w4a16, w4a8, nvfp4, found w2a2$"
    ):
        usable("w2a2", CPU)


def test_the_summary_counts():
    choices = [Choice(W4A4, "")] * 3 + [Choice(W4A16, "zero points")] * 2
    assert summary(choices) == "w4a4: 3; w4a16: 2 (zero points)"


def test_the_cpu():
    found = card_of("cpu")
    assert found.chip == "cpu" and found.kitchen == found.int_mm == found.scaled_mm == "no GPU (device is cpu)"


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({"available": True, "disabled": False, "capabilities": ["scaled_mm_svdquant_w4a4"]}, ""),
        ({"available": True, "disabled": True}, "switched off"),
        ({"available": False, "unavailable_reason": "no driver"}, "no CUDA kernels here (no driver)"),
        ({"available": True, "disabled": False, "capabilities": []}, "no SVDQuant kernels"),
    ],
)
def test_a_gpu_is_asked_what_it_can(monkeypatch, found, problem):
    """Products that torch refuses there are no path; their own words are the reason."""
    import comfy_kitchen

    monkeypatch.setattr(comfy_kitchen.registry, "list_backends", lambda: {"cuda": found})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(compute, "_operands", lambda device, dtype: (torch.zeros(2, 3), torch.zeros(2, 3)))
    monkeypatch.setattr(compute.registry, "why_not", lambda *args, **options: None)
    answer = card_of.__wrapped__("cuda")
    assert answer.chip == "sm_89" and answer.capability == 89
    assert problem in answer.kitchen and bool(problem) == bool(answer.kitchen)
    assert answer.int_mm and answer.scaled_mm and not answer.triton
