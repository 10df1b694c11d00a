"""Watches the linear layers of a network during a sampling run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...quant.activations import Activations
from ..compat import unless_out_of_memory


@contextmanager
def watched_linears(network: torch.nn.Module, activations: Activations) -> Iterator[None]:
    """While it lasts, the inputs of every linear layer of the network go to `activations` under the layer's name. Where
    memory runs out, they are stopped, and the network goes on."""
    import comfy.ops

    names = {module: name for name, module in network.named_modules() if _is_linear(module)}
    called = set()

    def add(name, module, args, kwargs):
        called.add(module)
        watch(name, lambda: next(iter((*args, *kwargs.values()))))

    def fused(compute: Callable[..., Tensor], linear, x: Tensor, input_act: str) -> Tensor:
        called.clear()
        out = compute(linear, x, input_act)
        if linear in names and linear not in called and activations.watching:
            watch(names[linear], lambda: comfy.ops.INPUT_ACT_EAGER[input_act](x))
        return out

    def watch(name: str, inputs: Callable[[], Tensor]) -> None:
        unless_out_of_memory(lambda: activations.add(name, inputs()), activations.stop)

    hooks = [
        module.register_forward_pre_hook(functools.partial(add, name), with_kwargs=True)
        for module, name in names.items()
    ]
    # Core's linear(activation(x)). Of INT8 weights it is one kernel that does not call the layer.
    linear_input_act = comfy.ops.linear_input_act
    comfy.ops.linear_input_act = functools.partial(fused, linear_input_act)
    try:
        yield
    finally:
        comfy.ops.linear_input_act = linear_input_act
        for hook in hooks:
            hook.remove()


def _is_linear(module: torch.nn.Module) -> bool:
    """torch's Linear, or what stands for it: core's layer for quantised weights, and those of some packs, are no
    subclasses."""
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return isinstance(module, torch.nn.Linear) or all(isinstance(size, int) for size in sizes)
