"""What is said about an autoencoder beside its tensors: by its user, its file's metadata and name, and config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files import load_json, parse_json
from ..messages import short
from .config import RELU, RES, SILU, Config, Stage

AUTO = "auto"
# safetensors metadata that may name the model.
_METADATA_NAMES = ("model_name", "modelspec.title", "modelspec.architecture")
# What makes a text speak of a DC-AE at all: its name, or a size such as f32c32.
_SIZE = re.compile(r"f([0-9]{1,9})c([0-9]{1,9})")
_DCAE = re.compile(r"dc[-_. ]?ae|sana")
# f32c32-in-1.0-256px has the tensors of f32c32-in-1.0 and a scale of its own, which is not published.
_UNKNOWN_SCALE = "256px"
# What says which of several autoencoders with the same tensors it is, by a part of their names in config.CONFIGS.
_MARKS = {
    "-in-": re.compile(r"(?<![a-z0-9])in(?![a-z0-9])"),
    "-mix-": re.compile(r"(?<![a-z0-9])mix(?![a-z0-9])"),
    "-sana-1.0": re.compile(r"(?<![0-9.])1[._]0(?![0-9])"),
    "-sana-1.1": re.compile(r"(?<![0-9.])1[._]1(?![0-9])"),
}


@dataclass(frozen=True)
class Hints:
    """variant: a name in config.CONFIGS that the user chose, or `auto`; texts: which text stands where; settings: an
    AutoencoderDC's of diffusers."""

    variant: str = AUTO
    texts: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def candidates(self, configs: Iterable[Config]) -> dict[str, frozenset[str]]:
        """By place, which of the configurations its text speaks for; a text for none, or for all, is left out.

        The name of a folder counts where that of the file says nothing.
        """
        configs = tuple(configs)
        result = {}
        for where, text in self.texts:
            names = frozenset(config.name for config in configs if _speaks(text.lower(), config))
            if names and len(names) < len(configs) and not (where == "folder" and "file name" in result):
                result[where] = names
        return result

    def fit(self, config: Config) -> bool:
        """Whether the settings are those of an autoencoder of this size: a config.json may belong to another file of
        its folder."""
        expected = {"latent_channels": config.latent_channels}
        for side, stages in (("encoder", config.encoder), ("decoder", config.decoder)):
            expected[f"{side}_layers_per_block"] = [stage.depth for stage in stages]
        return all(_plain(self.settings.get(name)) == value for name, value in expected.items())

    def applied(self, config: Config) -> Config:
        """The configuration with what the settings say and no tensor tells; the same where they do not fit it. Raises
        ValueError naming a setting of a wrong kind."""
        if not self.fit(config):
            return config
        acts = self._setting("decoder_act_fns", "silu", (str, list, tuple))
        acts = [acts] * len(config.decoder) if isinstance(acts, str) else acts
        if len(acts) != len(config.decoder) or any(act not in (RELU, SILU) for act in acts):
            raise ValueError(f"config.json: decoder_act_fns: expected relu or silu for each stage, found {short(acts)}")
        final = self._setting("decoder_conv_act_fn", RELU, (str,))
        if final not in (RELU, SILU):
            raise ValueError(f"config.json: decoder_conv_act_fn: expected relu or silu, found {final}")
        return replace(
            config,
            decoder=tuple(_acting(stage, act) for stage, act in zip(config.decoder, acts, strict=True)),
            end_shortcuts=self._setting("encoder_out_shortcut", True, (bool,)),
            final_act=final,
            scale=self._size("scaling_factor", None, (float, int)),
            head_dim=self._size("attention_head_dim", 32, (int,)),
        )

    def _setting(self, name: str, otherwise: Any, kinds: tuple[type, ...]) -> Any:
        """A setting, or what diffusers takes where there is none. Raises ValueError where it is of another kind."""
        value = self.settings.get(name, otherwise)
        if value is not otherwise and not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"config.json: {name}: expected a {expected}, found {short(value)}")
        return value

    def _size(self, name: str, otherwise: Any, kinds: tuple[type, ...]) -> Any:
        """As _setting. Raises ValueError too where it is not above 0 and finite."""
        value = self._setting(name, otherwise, kinds)
        if value is not otherwise and (isinstance(value, bool) or not 0 < value < math.inf):
            raise ValueError(f"config.json: {name}: expected a finite number above 0, found {short(value)}")
        return value


def gather(path: Path, metadata: Mapping[str, str], variant: str = AUTO) -> Hints:
    """All that is said about the file: by `variant`, by its metadata, by a config.json beside it (MIT's
    {"model_name": ...} or diffusers'), by its name and that of its folder."""
    texts, settings = [], {}
    beside = path.with_name("config.json")
    sources = (
        ("config.json", lambda: load_json(beside, "settings")),
        ("metadata", lambda: parse_json(metadata.get("config", ""))),
    )
    for where, load in sources:
        content = _object(load)
        if content.get("_class_name") == "AutoencoderDC":
            settings = settings or content
        for key in ("model_name", "_name_or_path"):
            if isinstance(content.get(key), str):
                texts.append((where, content[key]))
    texts += [("metadata", metadata[name]) for name in _METADATA_NAMES if name in metadata]
    texts += [("file name", path.name), ("folder", path.absolute().parent.name)]
    return Hints(variant, tuple(texts), settings)


def _acting(stage: Stage, act: str) -> Stage:
    return replace(stage, act=act) if stage.block == RES and stage.depth else stage


def _speaks(text: str, config: Config) -> bool:
    if _UNKNOWN_SCALE in text:
        return False
    sizes = {tuple(map(int, numbers)) for numbers in _SIZE.findall(text)}
    if sizes:
        if sizes != {(config.factor, config.latent_channels)}:
            return False
    elif not _DCAE.search(text):
        return False
    return any(mark in config.name and pattern.search(text) for mark, pattern in _MARKS.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _object(load: Callable[[], Any]) -> dict[str, Any]:
    """A JSON object; empty where there is none, for these files are other people's."""
    try:
        content = load()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
