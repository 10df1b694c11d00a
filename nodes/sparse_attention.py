"""Node: sparse self-attention for a loaded video model."""

from comfy_api.latest import io

from ..accel.attention.budget import PRESETS
from .types import BudgetType


class DitAccelSparseAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelSparseAttention",
            display_name="Sparse Attention (DiT Accel)",
            category="DiT Accel/attention",
            description=(
                "Makes the self-attention of a video model sparse, without training: the same picture from less work. "
                "Put it between the model loader and the sampler. Wan and its variants, HunyuanVideo, LTX, MiniMax H3, "
                "CogVideoX, Mochi, Cosmos, Kandinsky; other models run unchanged. Each sampling run logs what was "
                "sparse, what stayed dense and why."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A video diffusion transformer, with its LoRAs."),
                io.Combo.Input(
                    "pattern",
                    options=["svg2", "svg_ear", "tree", "svg1", "radial", "window", "pooled"],
                    default="svg2",
                    tooltip=(
                        "How the kept key blocks are chosen. svg2: clusters of like content. svg_ear: the same, with "
                        "means in place of what is skipped. tree: full blocks of like content, with means likewise. "
                        "svg1: bands along the axis order that suits each head. radial, window: by distance, next to "
                        "nothing to plan. pooled: boxes of the video by their means."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "16-bit", "8-bit"],
                    default="auto",
                    tooltip=(
                        "Arithmetic of the sparse kernel. 8-bit: INT8 or FP8, as the GPU has them; costs 1 to 4 % of "
                        "relative error. auto: 8-bit where `dit-accel bench gate` measured it to be faster, where the "
                        "pattern costs more; else 16-bit."
                    ),
                ),
                io.Combo.Input(
                    "token_order",
                    options=["auto", "raster", "cube", "morton"],
                    default="auto",
                    tooltip=(
                        "Order of the tokens before they are cut into blocks, for the patterns window and pooled; auto "
                        "is cube. The other patterns have orders of their own."
                    ),
                ),
                io.Combo.Input(
                    "guard",
                    options=["on", "off"],
                    default="on",
                    optional=True,
                    tooltip=(
                        "on: samples the error of sparse calls, keeps more where a layer loses more than the budget "
                        "allows, and repeats a step densely that gives NaN. The report shows what it found."
                    ),
                ),
                io.Combo.Input(
                    "fallback",
                    options=["dense", "reference", "error"],
                    default="dense",
                    optional=True,
                    tooltip=(
                        "When no fast kernel can take a call (no GPU, no Triton): dense runs it as usual; "
                        "reference computes the sparse result in PyTorch, slowly, to judge quality anywhere; "
                        "error stops."
                    ),
                ),
                BudgetType.Input(
                    "budget",
                    optional=True,
                    tooltip="How much may be skipped, and where. Without it: preset auto.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(tooltip="The model with sparse attention.")],
            search_aliases=["SVG2", "Sparse VideoGen", "sparse attention", "speed up video"],
        )

    @classmethod
    def execute(
        cls, model, pattern, precision, token_order, guard="on", fallback="dense", budget=None
    ) -> io.NodeOutput:
        # Not with the module: ComfyUI's start would pay for planners and kernels.
        from ..accel.attention.run import Settings
        from ..accel.comfy.inputs import need_model
        from ..accel.comfy.sparse import patch

        settings = Settings(
            pattern=pattern,
            precision=precision,
            token_order=token_order,
            guard=guard,
            fallback=fallback,
            budget=PRESETS["auto"] if budget is None else budget,
        )
        return io.NodeOutput(patch.install(need_model(model), settings, node=cls.hidden and cls.hidden.unique_id))
