"""Tiny autoencoders of every published make-up, with every number random, and convolutions that add in one order."""

from types import SimpleNamespace

import torch

from dit_accel.accel.dcae.config import BATCH, EVIT, INTERPOLATE, RELU, RES, SILU, STRIDED, Config, Stage
from dit_accel.accel.dcae.network import DCAE


def _attending(norm: str, act: str, *depths: int, scales=()) -> tuple[Stage, ...]:
    first, second, *inner = depths
    outer = (Stage(8, first, RES, (), norm, act), Stage(16, second, RES, (), norm, act))
    return (*outer, *(Stage(width, depth, EVIT, scales) for width, depth in zip((16, 32), inner, strict=True)))


def _residual(*depths: int) -> tuple[Stage, ...]:
    return tuple(Stage(width, depth) for width, depth in zip((8, 16, 16, 32), depths, strict=True))


_SANA = _attending("rms", SILU, 1, 1, 2, 1, scales=(5,))
_STEPPED = (Stage(8, 0), Stage(8, 1), Stage(16, 1, EVIT, (3, 5)))
VARIANTS = {
    "sana": Config("sana", 8, _SANA, _SANA, STRIDED, INTERPOLATE, head_dim=8),
    "in": Config("in", 8, _attending("rms", SILU, 0, 2, 1, 1), _attending(BATCH, RELU, 0, 1, 2, 1), head_dim=8),
    "1.5": Config("1.5", 8, _residual(0, 2, 1, 1), _residual(0, 2, 2, 1), end_shortcuts=False, final_act=SILU),
    "lite": Config("lite", 8, _SANA, _residual(0, 1, 2, 1), STRIDED, final_act=SILU, head_dim=8),
    # Not published: outermost convolutions that are strided and follow interpolation, scales of two reaches.
    "stepped": Config("stepped", 8, _STEPPED, _STEPPED, STRIDED, INTERPOLATE, head_dim=8),
}


def random_network(config: Config, seed: int = 0, operations=torch.nn) -> DCAE:
    """Norms and statistics drawn too: at one and zero they would hide much."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DCAE(config, operations).eval().requires_grad_(False)
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.ndim == 1:
                value.add_(torch.randn_like(value), alpha=0.2)
    return network


def picture(config: Config, height: int, width: int, batch: int = 2) -> torch.Tensor:
    """Noise as large as the latent [height, width] asks for, the same on every call."""
    shape = batch, 3, height * config.factor, width * config.factor
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def latent(config: Config, height: int, width: int, batch: int = 2) -> torch.Tensor:
    shape = batch, config.latent_channels, height, width
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


class _OneOrder(torch.nn.Conv2d):
    """A convolution whose every output is added up in the same order, whatever the size of the image."""

    def forward(self, x):
        (above, beside), (kernel, _), step = self.padding, self.kernel_size, self.stride[0]
        x = torch.nn.functional.pad(x, (beside, beside, above, above))
        height, width = ((side - kernel) // step + 1 for side in x.shape[2:])
        inside, outside = self.in_channels // self.groups, self.out_channels // self.groups
        x = x.unflatten(1, (self.groups, 1, inside))
        weight = self.weight.unflatten(0, (self.groups, outside))[..., None, None]
        out = x.new_zeros(x.shape[0], self.groups, outside, height, width)
        for channel in range(inside):
            for row in range(kernel):
                for column in range(kernel):
                    seen = x[:, :, :, channel, row : row + step * height : step, column : column + step * width : step]
                    out += seen[..., :height, :width] * weight[:, :, channel, row, column]
        out = out.flatten(1, 2)
        return out if self.bias is None else out + self.bias[:, None, None]


ONE_ORDER = SimpleNamespace(Conv2d=_OneOrder)
