"""Attention overrides as other packs install them, with counters that a test can read."""

from collections import Counter

from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY
from dit_accel.tests.server.standins.pack import on_sampling
from dit_accel.tests.server.standins.plans import attend

OVERRIDE = "optimized_attention_override"
COUNTS = {}


class PlainOverride(io.ComfyNode):
    """Assigns its function and asks neither the backend nor the override before it (the Sage nodes' way)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinPlainOverride",
            category=CATEGORY,
            inputs=[io.Model.Input("model"), io.String.Input("name")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, name):
        counts = Counter()

        def override(func, q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
            axis = 2 if skip_reshape else 1
            counts["self" if q.shape[axis] == k.shape[axis] else "cross"] += 1
            return attend(q, k, v, heads, mask, skip_reshape, skip_output_reshape)

        def count(executor, *args, **kwargs):
            counts.clear()
            COUNTS[name] = counts
            return executor(*args, **kwargs)

        clone = on_sampling(model, f"standin_plain_{name}", count)
        clone.model_options["transformer_options"][OVERRIDE] = override
        return io.NodeOutput(clone)


class SparseOverride(io.ComfyNode):
    """Shaped as core's block-sparse attention: chains what it finds, returns to the top at every step."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinSparseOverride",
            category=CATEGORY,
            inputs=[io.Model.Input("model"), io.String.Input("name")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, name):
        from comfy.patcher_extension import CallbacksMP

        counts, depths, installed = Counter(), [], []
        COUNTS[name] = counts

        def make(previous):
            def override(func, *args, **kwargs):
                counts["calls"] += 1
                return func(*args, **kwargs) if previous is None else previous(func, *args, **kwargs)

            override.previous = previous
            return override

        def install(options):
            current = options.get(OVERRIDE)
            if current not in installed:
                installed.append(make(current))
                options[OVERRIDE] = installed[-1]

        def prepare_state(patcher, timestep, model_options=None, *args):
            options = (model_options or patcher.model_options)["transformer_options"]
            install(options)
            depths.append(_depth(options[OVERRIDE]))
            counts["steps"] = len(depths)
            counts["deepest"], counts["shallowest"] = max(depths), min(depths)

        def reset(executor, *args, **kwargs):
            counts.clear()
            depths.clear()
            return executor(*args, **kwargs)

        clone = on_sampling(model, "standin_sparse", reset)
        install(clone.model_options["transformer_options"])
        clone.add_callback_with_key(CallbacksMP.ON_PREPARE_STATE, "block_sparse_attention", prepare_state)
        return io.NodeOutput(clone)


def _depth(override):
    depth = 0
    while override is not None:
        depth += 1
        override = getattr(override, "previous", None)
    return depth


class Counts(io.ComfyNode):
    """What the overrides of that name counted in the last run."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinCounts",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.String.Input("name"), io.Latent.Input("samples")],
        )

    @classmethod
    def execute(cls, name, samples):
        return io.NodeOutput(ui={"counts": [dict(COUNTS[name])]})


NODES = [PlainOverride, SparseOverride, Counts]
