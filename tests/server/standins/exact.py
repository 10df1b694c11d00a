"""The error of every sparse call, computed on all rows."""

import torch
from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY
from dit_accel.tests.server.standins.pack import executing, on_sampling

CALLS = {}


class ExactErrors(io.ComfyNode):
    """Compares every sparse call of this model's next sampling run with dense attention, under a name."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinExactErrors",
            category=CATEGORY,
            inputs=[io.Model.Input("model"), io.String.Input("name")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, name):
        def compare(executor, *args, **kwargs):
            calls = CALLS[name] = []

            def execute(original, q, k, v, plan, *, scale, **settings):
                result = original(q, k, v, plan, scale=scale, **settings)
                out = result[0] if isinstance(result, tuple) else result
                dense = torch.nn.functional.scaled_dot_product_attention(
                    q.double(), k.double(), v.double(), scale=scale
                )
                calls.append(((out - dense).norm() / dense.norm()).item())
                return result

            with executing(execute):
                return executor(*args, **kwargs)

        return io.NodeOutput(on_sampling(model, "standin_exact_errors", compare))


class ReadErrors(io.ComfyNode):
    """The relative L2 of each of those calls, in their order; after sampling."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinReadErrors",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.String.Input("name"), io.Latent.Input("samples")],
        )

    @classmethod
    def execute(cls, name, samples):
        return io.NodeOutput(ui={"errors": CALLS[name]})


NODES = [ExactErrors, ReadErrors]
