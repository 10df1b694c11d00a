"""What the published image autoencoders are made of: one row each."""

from __future__ import annotations

from dataclasses import dataclass, replace

RES, EVIT = "res", "evit"
RMS, BATCH = "rms", "batch"
RELU, SILU = "relu", "silu"
STRIDED, UNSHUFFLE = "strided", "unshuffle"
INTERPOLATE, SHUFFLE = "interpolate", "shuffle"


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution. block: RES or EVIT; scales: kernel sizes of the attention's further scales; norm, act:
    of residual blocks (EVIT has RMS and SiLU always). A stage of depth 0 has no parameters."""

    width: int
    depth: int
    block: str = RES
    scales: tuple[int, ...] = ()
    norm: str = RMS
    act: str = SILU


@dataclass(frozen=True)
class Config:
    """An autoencoder. Stages run from full resolution down, on both sides; each after the first halves it. With depth 0
    in the first stage the outermost convolution takes its step.

    down, up: how a stage changes the resolution; end_shortcuts: parameter-free shortcuts around the encoder's last and
    the decoder's first convolution; final_act: before the decoder's last convolution. scale: what a diffusion model's
    latent is multiplied by, None where it is not known. head_dim: of the attention.
    """

    name: str
    latent_channels: int
    encoder: tuple[Stage, ...]
    decoder: tuple[Stage, ...]
    down: str = UNSHUFFLE
    up: str = SHUFFLE
    end_shortcuts: bool = True
    final_act: str = RELU
    scale: float | None = None
    head_dim: int = 32

    @property
    def factor(self) -> int:
        """Pixels to a latent pixel, along each side."""
        return 2 ** (len(self.encoder) - 1)


_WIDTHS = (128, 256, 512, 512, 1024, 1024)


def _stages(widths, depths, attention_from: int, scales=(), outer=None) -> tuple[Stage, ...]:
    """Residual blocks up to a stage, and attention from there on; outer: changes to the former."""
    stages = []
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if index < attention_from:
            stages.append(replace(Stage(width, depth), **(outer or {})))
        else:
            stages.append(Stage(width, depth, EVIT, scales))
    return tuple(stages)


def _one(name: str, channels: int, widths: tuple[int, ...], scale: float) -> Config:
    """DC-AE 1.0 for ImageNet (in) or for mixed data (mix)."""
    inner = (2,) * (len(widths) - 3)
    batch = {"norm": BATCH, "act": RELU}
    return Config(
        name,
        channels,
        _stages(widths, (0, 4, 8, *inner), 3),
        _stages(widths, (0, 5, 10, *inner), 3, outer=batch),
        scale=scale,
    )


def _sana(name: str, decoder: tuple[Stage, ...], **changes) -> Config:
    encoder = _stages(_WIDTHS, (2, 2, 2, 3, 3, 3), 3, (5,))
    return Config(name, 32, encoder, decoder, STRIDED, scale=0.41407, **changes)


def _one_and_a_half(name: str, widths: tuple[int, ...]) -> Config:
    stages = _stages(widths, (0, 5, 10, *(4,) * (len(widths) - 3)), len(widths))
    return Config(name, 128, stages, stages, end_shortcuts=False, final_act=SILU)


_SANA_DECODER = _stages(_WIDTHS, (3, 3, 3, 3, 3, 3), 3, (5,))

# sana-1.1 has sana-1.0's graph and encoder; its decoder was trained anew.
CONFIGS = {
    config.name: config
    for config in (
        _one("f32c32-in-1.0", 32, _WIDTHS, 0.3189),
        _one("f32c32-mix-1.0", 32, _WIDTHS, 0.4552),
        _one("f64c128-in-1.0", 128, (*_WIDTHS, 2048), 0.2889),
        _one("f64c128-mix-1.0", 128, (*_WIDTHS, 2048), 0.4538),
        _one("f128c512-in-1.0", 512, (*_WIDTHS, 2048, 2048), 0.4883),
        _one("f128c512-mix-1.0", 512, (*_WIDTHS, 2048, 2048), 0.3620),
        _sana("f32c32-sana-1.0", _SANA_DECODER, up=INTERPOLATE),
        _sana("f32c32-sana-1.1", _SANA_DECODER, up=INTERPOLATE),
        _sana("lite-f32c32", _stages(_WIDTHS, (0, 3, 5, 4, 4, 4), 6), final_act=SILU),
        _one_and_a_half("f32c128-1.5", _WIDTHS),
        _one_and_a_half("f64c128-1.5", (*_WIDTHS, 1024)),
    )
}
