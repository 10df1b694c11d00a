"""The gate's measurements and decision on the device."""

import pytest
import torch

from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.cost import fits, gate
from dit_accel.accel.attention.cost.costs import Size
from dit_accel.accel.bench import gate_fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_what_is_measured_here_decides_here_without_a_sync(tmp_path):
    timings = gate_fit.measure("cuda", torch.bfloat16, "triton", 2, [((2, 24, 32), 4), ((3, 32, 48), 8)])
    costs = gate_fit.fit(timings)
    assert costs.dense > 0
    device = torch.device("cuda", 0)
    fit = fits.Fit(gate.card_at(device).name, fits.software(), costs, tmp_path / "card.json")
    fits.write_fit(fit, [timing.row(costs) for timing in timings])
    one = gate.Gate([fits.read_fit(fit.path)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        short = one.dense_is_faster(
            "layer", Size(2, 512, 512, 128), device, "svg2", PRESETS["faithful"], "16-bit", warm=True
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert short
    assert not one.predicted
