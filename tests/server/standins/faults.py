"""Faults for the guard to find."""

import dataclasses

import torch
from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY
from dit_accel.tests.server.standins.pack import executing, on_sampling, planning


class Fault(io.ComfyNode):
    """forgets: every plan of svg2 lacks the key block that matters most to each query block. nan: the first head of the
    n-th sparse call of a run gives NaN."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinFault",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("kind", options=["forgets", "nan"]),
                io.Int.Input("call", default=0),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, kind, call):
        def harm(executor, *args, **kwargs):
            with planning("svg2", _forget) if kind == "forgets" else executing(_Poison(call)):
                return executor(*args, **kwargs)

        return io.NodeOutput(on_sampling(model, "standin_fault", harm))


def _forget(original, call, budget):
    plan = original(call, budget)
    mass = (call.q @ call.k.mT * call.scale).softmax(-1)
    for axis, order in ((3, plan.keys), (2, plan.queries)):
        block = order.block_of_token()
        block = block[:, :, None].expand_as(mass) if axis == 3 else block[..., None].expand_as(mass)
        size = [*mass.shape]
        size[axis] = order.blocks
        mass = torch.zeros(size).scatter_add_(axis, block, mass)
    best = mass.masked_fill(~plan.keep, -1).argmax(-1, keepdim=True)
    # A query block must attend to something.
    return dataclasses.replace(plan, keep=plan.keep.scatter(3, best, plan.keep.sum(-1, keepdim=True) == 1))


class _Poison:
    def __init__(self, call):
        self.remaining = call

    def __call__(self, original, *args, **kwargs):
        result = original(*args, **kwargs)
        self.remaining -= 1
        if self.remaining == 0:
            out = result[0] if isinstance(result, tuple) else result
            out[:, 0] = torch.nan
        return result


NODES = [Fault]
