"""The list of nodes that ComfyUI registers."""

from comfy_api.latest import ComfyExtension, io

from ..accel.comfy import folders
from .attention_budget import DitAccelBudget
from .attention_profile import DitAccelLoadProfile, DitAccelProfile, DitAccelRecord, DitAccelSaveProfile
from .compare import DitAccelCompareVideos
from .conditioning import DitAccelLoadConditioning, DitAccelSaveConditioning
from .dcae import DitAccelDCAEDecode, DitAccelDCAEEncode, DitAccelLoadDCAE
from .load_svdquant import DitAccelLoadSVDQuant
from .report import DitAccelReport
from .sparse_attention import DitAccelSparseAttention


class DiTAccelExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            DitAccelSparseAttention,
            DitAccelBudget,
            DitAccelSaveConditioning,
            DitAccelLoadConditioning,
            DitAccelLoadSVDQuant,
            DitAccelLoadDCAE,
            DitAccelDCAEDecode,
            DitAccelDCAEEncode,
            DitAccelRecord,
            DitAccelProfile,
            DitAccelSaveProfile,
            DitAccelLoadProfile,
            DitAccelReport,
            DitAccelCompareVideos,
        ]
