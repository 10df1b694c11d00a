"""Watches the linear layers of a network during a sampling run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...quant.activations import Activations
from ..compat import unless_out_of_memory


@contextmanager
def watched_linears(network: torch.nn.Module, activations: Activations) -> Iterator[None]:
    """While it lasts, the inputs of every linear layer of the network go to `activations` under the layer's name. Where
    memory runs out, they are stopped, and the network goes on."""

    def add(name, module, inputs):
        unless_out_of_memory(lambda: activations.add(name, inputs[0]), activations.stop)

    hooks = [
        module.register_forward_pre_hook(functools.partial(add, name))
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
