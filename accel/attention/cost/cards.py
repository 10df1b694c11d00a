"""Published peak rates of one card for every architecture: what is known of a card before anything was measured on it.

Dense rates, without structured sparsity, with fp32 accumulation where a card has both. Sources: NVIDIA's whitepapers
and data sheets (A100; GA102; Ada; H100 and H200; Blackwell; RTX Blackwell), AMD's (MI300X; RX 7900 XTX; RX 9070 XT).
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """half, int8, fp8: TFLOP/s of the matrix units, fp8 None where there are none; bandwidth: TB/s.

    attention, product: the part of `half` that 16-bit attention as PyTorch brings it, and a plain kernel of ours that
    multiplies (k-means), are taken to reach.
    """

    name: str
    half: float
    int8: float
    fp8: float | None
    bandwidth: float
    attention: float
    product: float


# The parts of H100 and RTX 4090 are those with which published times of SVG2 were explained: FlashAttention 2 at 350
# and 150 TFLOP/s, k-means at 150 and 75. The others are guesses by likeness.
H100 = Card("H100 SXM", 989.4, 1978.9, 1978.9, 3.35, 0.354, 0.15)
H200 = H100._replace(name="H200 SXM", bandwidth=4.8)
RTX_4090 = Card("RTX 4090", 165.2, 660.6, 330.3, 1.008, 0.91, 0.45)
RTX_5090 = Card("RTX 5090", 209.5, 838.0, 419.0, 1.792, 0.91, 0.45)
BY_ARCHITECTURE = {
    "sm_80": Card("A100 SXM", 312.0, 624.0, None, 2.039, 0.64, 0.40),
    "sm_86": Card("RTX 3090", 71.0, 284.0, None, 0.936, 0.91, 0.45),
    "sm_89": RTX_4090,
    "sm_90": H100,
    "sm_100": Card("B200", 2250.0, 4500.0, 4500.0, 8.0, 0.354, 0.15),
    "sm_120": RTX_5090,
    "gfx942": Card("MI300X", 1307.4, 2614.9, 2614.9, 5.3, 0.354, 0.15),
    "gfx1100": Card("RX 7900 XTX", 122.8, 122.8, None, 0.96, 0.5, 0.3),
    "gfx1201": Card("RX 9070 XT", 195.0, 389.0, 389.0, 0.64, 0.5, 0.3),
}
