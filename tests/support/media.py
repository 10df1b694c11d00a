"""Small media files for a server's input folder."""

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

_SIZE = 128
_RATE = 16000


def image(path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save(path)


def audio(path: Path) -> None:
    """Two seconds of clicks and noise, mono. Readers go by the content, not by the name's ending."""
    samples = np.random.default_rng(1).normal(0, 300, 2 * _RATE)
    samples[:: _RATE // 2] = 20000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def video(path: Path, frames: int = 17) -> None:
    """A bright square that moves to the right."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=Fraction(16))
        stream.width = stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.zeros((_SIZE, _SIZE, 3), np.uint8)
            pixels[40:80, 4 * number : 4 * number + 40] = 200
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(stream.encode())
