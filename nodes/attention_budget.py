"""Node: the budget dial."""

from comfy_api.latest import io

from ..accel.attention.budget import make_budget
from .types import BudgetType, ProfileType


class DitAccelBudget(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelBudget",
            display_name="Attention Budget (DiT Accel)",
            category="DiT Accel/attention",
            description=(
                "How much of attention may be skipped, and where. A named preset decides every number; "
                "custom uses the numbers below it."
            ),
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=["auto", "faithful", "balanced", "turbo", "few_step", "custom"],
                    default="auto",
                    tooltip="auto: few_step for schedules of up to 10 steps, faithful otherwise; the log says which.",
                ),
                io.Float.Input(
                    "top_p",
                    default=0.9,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    tooltip="Attention mass that the kept blocks must hold. Lower is faster and less exact.",
                ),
                io.Float.Input(
                    "floor",
                    default=0.05,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the key blocks that is kept whatever top_p says.",
                ),
                io.Float.Input(
                    "max_density",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Cap on the kept fraction of the video's keys. It wins over top_p and floor; text and "
                    "reference tokens are always kept.",
                ),
                io.Float.Input(
                    "dense_first",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Fraction of the schedule that stays dense at its start: it fixes the composition.",
                ),
                io.Float.Input(
                    "dense_last",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Fraction of the schedule that stays dense at its end.",
                ),
                io.String.Input(
                    "dense_blocks",
                    default="0",
                    optional=True,
                    tooltip="Transformer blocks that stay dense, such as: 0, 1, 47-49. Single blocks count on "
                    "after the double blocks.",
                ),
                io.Int.Input(
                    "min_tokens",
                    default=12288,
                    min=0,
                    max=1 << 24,
                    optional=True,
                    tooltip="Shorter videos stay dense: below about 12,000 tokens sparse attention gains nothing.",
                ),
                ProfileType.Input(
                    "profile",
                    optional=True,
                    tooltip="A measured profile: its top_p and floor of every layer and head hold in place of the two "
                    "numbers here. The rest of the budget stays.",
                ),
            ],
            outputs=[BudgetType.Output(display_name="budget")],
            search_aliases=["top-p", "density", "sparse budget"],
        )

    @classmethod
    def execute(
        cls,
        preset,
        top_p,
        floor,
        max_density=1.0,
        dense_first=0.2,
        dense_last=0.0,
        dense_blocks="0",
        min_tokens=12288,
        profile=None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            make_budget(
                preset,
                dense_blocks,
                profile,
                top_p=top_p,
                floor=floor,
                max_density=max_density,
                dense_first=dense_first,
                dense_last=dense_last,
                min_tokens=min_tokens,
            )
        )
