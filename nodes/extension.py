"""The list of nodes that ComfyUI registers."""

from comfy_api.latest import ComfyExtension, io

from ..accel.comfy import models
from .budget import DitAccelBudget
from .compare import DitAccelCompareVideos
from .conditioning import DitAccelLoadConditioning, DitAccelSaveConditioning
from .dcae import DitAccelDCAEDecode, DitAccelDCAEEncode, DitAccelLoadDCAE
from .profile import DitAccelLoadProfile, DitAccelProfile, DitAccelRecord, DitAccelSaveProfile
from .report import DitAccelReport
from .sparse_attention import DitAccelSparseAttention
from .svdquant import DitAccelLoadSVDQuant


class DiTAccelExtension(ComfyExtension):
    async def on_load(self) -> None:
        models.register()

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
