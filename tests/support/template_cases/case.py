"""A template that is executed on tiny models: what replaces what, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dit_accel.tests.support.graphs import Graph

# Loaders of text encoders, VAEs and the like, and the inputs that their stand-in takes over.
STANDINS = {
    "CLIPLoader": ("StandinClip", ()),
    "DualCLIPLoader": ("StandinClip", ()),
    "VAELoader": ("StandinVae", ()),
    "LoraLoaderModelOnly": ("StandinLora", ("model",)),
    "LoraLoader": ("StandinLora", ("model", "clip")),
    "CLIPVisionLoader": ("StandinVision", ("clip_name",)),
    "AudioEncoderLoader": ("StandinAudioEncoder", ("audio_encoder_name",)),
}


@dataclass(frozen=True)
class Case:
    """sampler: id of the last one. models: model file in the template -> tiny checkpoint. steps: of the schedule.
    forwards: of each sampling run. runs: how many there are. inputs: node id -> inputs that are changed, after the
    sizes. standins: more of `STANDINS`, or other ones. dense: why the family stays dense. graph: for a family without a
    template; `template` then is its name."""

    template: str
    sampler: str
    models: dict[str, str]
    steps: int
    forwards: int
    runs: int = 1
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    standins: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    dense: str | None = None
    graph: Graph | None = None
