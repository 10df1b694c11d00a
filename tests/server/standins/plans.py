"""Recording the plans of a run, and dense attention under the token masks that they mean."""

import itertools

import torch
from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY
from dit_accel.tests.server.standins.pack import executing, on_sampling

RECORDINGS = {}


class Recorder(io.ComfyNode):
    """Keeps every plan that the pack executes in this model's next sampling run, under a name."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinRecorder",
            category=CATEGORY,
            inputs=[io.Model.Input("model"), io.String.Input("name")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, name):
        def record(executor, *args, **kwargs):
            plans = []

            def execute(original, q, k, v, plan, **settings):
                plans.append(plan)
                return original(q, k, v, plan, **settings)

            with executing(execute):
                out = executor(*args, **kwargs)
            RECORDINGS[name] = [PlanMask.of(plan) for plan in plans]
            return out

        return io.NodeOutput(on_sampling(model, "standin_recorder", record))


class PlanMask:
    """A plan as labels: query_labels, key_labels [B, H, N] (each token's block), keep [B, H, Q, K]."""

    def __init__(self, query_labels, key_labels, keep):
        self.query_labels, self.key_labels, self.keep = query_labels, key_labels, keep

    @classmethod
    def of(cls, plan):
        return cls(_labels(plan.queries), _labels(plan.keys), plan.keep.clone())

    @property
    def tokens(self):
        return self.query_labels.shape[-1]

    def token_mask(self):
        """bool [B, H, N, N]"""
        batch, heads = (torch.arange(size) for size in self.keep.shape[:2])
        return self.keep[
            batch[:, None, None, None],
            heads[:, None, None],
            self.query_labels[..., :, None],
            self.key_labels[..., None, :],
        ]

    def randomised(self, generator):
        """Other key blocks in each row, at least as many tokens; block 0 of both orders stays as it is."""
        keep = self.keep.clone()
        for b, h in [(b, h) for b in range(keep.shape[0]) for h in range(keep.shape[1])]:
            sizes = torch.bincount(self.key_labels[b, h], minlength=keep.shape[3])
            for row in keep[b, h, 1:, 1:]:
                wanted = sizes[1:][row].sum()
                order = torch.randperm(row.numel(), generator=generator)
                before = sizes[1:][order].cumsum(0) - sizes[1:][order]
                row.zero_()
                row[order[before < wanted]] = True
        return PlanMask(self.query_labels, self.key_labels, keep)


def _labels(order):
    batch, heads = order.index.shape
    labels = torch.full((batch, heads, order.tokens.shape[1]), -1, dtype=torch.long)
    for b in range(batch):
        for h in range(heads):
            row = int(order.index[b, h])
            ends = order.offsets[row].tolist()
            for block, (first, last) in enumerate(itertools.pairwise(ends)):
                labels[b, h, order.tokens[row, first:last].long()] = block
    if (labels < 0).any():
        raise RuntimeError("the plan's order leaves out tokens")
    return labels


class Replayer(io.ComfyNode):
    """Dense attention under the token mask of the n-th recorded plan, for the n-th call of that length."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinReplayer",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.String.Input("name"),
                io.Boolean.Input("random_blocks", default=False),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, name, random_blocks):
        def replay(executor, *args, **kwargs):
            plans = list(RECORDINGS[name])
            if random_blocks:
                generator = torch.Generator().manual_seed(0)
                plans = [plan.randomised(generator) for plan in plans]
            override.remaining = plans
            result = executor(*args, **kwargs)
            if override.remaining:
                raise RuntimeError(f"{len(override.remaining)} recorded plans were not used")
            return result

        def override(func, q, k, v, heads, *args, skip_reshape=False, skip_output_reshape=False, **kwargs):
            tokens = override.remaining[0].tokens if override.remaining else None
            axis = 2 if skip_reshape else 1
            if q.shape[axis] != tokens or k.shape[axis] != tokens:
                return func(
                    q,
                    k,
                    v,
                    heads,
                    *args,
                    skip_reshape=skip_reshape,
                    skip_output_reshape=skip_output_reshape,
                    **kwargs,
                )
            mask = override.remaining.pop(0).token_mask()
            return attend(q, k, v, heads, mask, skip_reshape, skip_output_reshape)

        override.remaining = []
        clone = on_sampling(model, "standin_replayer", replay)
        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return io.NodeOutput(clone)


def attend(q, k, v, heads, mask, skip_reshape, skip_output_reshape):
    """Attention in ComfyUI's layouts, in fp32."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    out = out.to(q.dtype)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class PlanFacts(io.ComfyNode):
    """Sizes of the recorded plans: per plan the tokens, the blocks that hold video and their sizes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinPlanFacts",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.String.Input("name"), io.Latent.Input("samples")],
        )

    @classmethod
    def execute(cls, name, samples):
        facts = [
            {
                "tokens": plan.tokens,
                "query_sizes": torch.bincount(plan.query_labels[0, 0], minlength=plan.keep.shape[2]).tolist(),
                "key_sizes": torch.bincount(plan.key_labels[0, 0], minlength=plan.keep.shape[3]).tolist(),
                "density": plan.token_mask().float().mean().item(),
            }
            for plan in RECORDINGS[name]
        ]
        return io.NodeOutput(ui={"plans": facts})


NODES = [Recorder, Replayer, PlanFacts]
