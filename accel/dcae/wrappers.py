"""What training code and packers put around the tensors of an autoencoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Where a training state keeps tensors by name; the running average of the weights before the weights themselves.
_INNER = ("ema", "ema_state_dict", "ema_model", "state_dict", "model_state_dict", "model", "module", "generator")
# In how many dictionaries tensors may lie: a pickle may hold one that holds itself.
_DEPTH = 4
# Modules around modules: data parallel, torch.compile, FSDP and activation checkpoints.
_MODULES = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def innermost(content: Any) -> Any:
    """What a training state holds in place of the tensors by name: that of its dictionaries, or itself."""
    for _ in range(_DEPTH):
        if not isinstance(content, dict):
            break
        inner = [content[name] for name in _INNER if isinstance(content.get(name), dict)]
        if not inner and not any(isinstance(value, Tensor) for value in content.values()):
            inner = [value for value in content.values() if isinstance(value, dict)]
            inner = inner if len(inner) == 1 else []
        if not inner:
            break
        content = inner[0]
    return content


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the names of wrapping modules. Raises ValueError where two have the same name then."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = _MODULES.sub("", name)
        if bare in result:
            raise ValueError(f"{name}: expected one tensor {bare}, wrapped or not, found two")
        result[bare] = tensor
    return result
