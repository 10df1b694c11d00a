"""The list of nodes that ComfyUI registers."""

from comfy_api.latest import ComfyExtension, io

from .budget import DitAccelBudget
from .sparse_attention import DitAccelSparseAttention


class DiTAccelExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [DitAccelSparseAttention, DitAccelBudget]
