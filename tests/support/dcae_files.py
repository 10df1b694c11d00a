"""DC-AE files that others made, and our configurations as others write them."""

import gzip
import json
from pathlib import Path

from dit_accel.accel.dcae.config import Config
from dit_accel.accel.dcae.keys import Format, table
from dit_accel.accel.dcae.shapes import Shape
from dit_accel.tests.bench.dcae_peers import diffusers_settings

__all__ = ["GOLDEN", "MIT_SHAPES", "TINY", "diffusers_settings", "golden", "in_file"]

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MIT_SHAPES = json.loads(gzip.decompress((GOLDEN / "dcae_mit_checkpoint_shapes.json.gz").read_bytes()))
TINY = ("sana", "mix")


def golden(which: str) -> Path:
    """A tiny autoencoder in MIT's format, one of TINY."""
    return GOLDEN / f"dcae_mit_{which}_like.safetensors"


def in_file(config: Config, form: Format) -> dict[str, Shape]:
    """The tensors of a file, by the format's names."""
    return {name: shape for theirs in table(config, form).values() for name, shape in theirs.items()}
