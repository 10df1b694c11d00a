"""A picture of 2048 x 2048 pixels from a decoder as large as SANA's, in a process whose memory is read at its end."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

DECODE = """
import json, resource, torch
from dit_accel.accel.dcae.config import CONFIGS
from dit_accel.accel.dcae.network import DCAE

network = DCAE(CONFIGS["f32c32-sana-1.0"], device="meta", dtype=torch.bfloat16)
network.decoder.to_empty(device="cpu")
torch.manual_seed(0)
with torch.inference_mode():
    for name, value in network.decoder.named_parameters():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        else:
            value.fill_(0.3 if name.endswith("norm.weight") else 1 if name == "norm_out.weight" else 0)
    picture = network.decode(torch.randn(1, 32, 64, 64, dtype=torch.bfloat16), rows=8)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spread = picture.float().std((2, 3)).min().item()
print(json.dumps({"bytes": kilobytes * 1024, "shape": list(picture.shape), "spread": spread}))
"""


def test_2048_pixels_take_little_memory():
    run = subprocess.run([sys.executable, "-c", DECODE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["shape"] == [1, 3, 2048, 2048]
    assert 0 < found["spread"] < float("inf")
    # At once it would be 3.8 GB of tensors in bf16; 10 GB is what a picture of this size may take.
    assert found["bytes"] < 3e9, f"{found['bytes'] / 1e9:.1f} GB"
