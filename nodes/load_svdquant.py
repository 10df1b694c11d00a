"""Node: a diffusion model with 4-bit weights from a file."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io


class DitAccelLoadSVDQuant(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelLoadSVDQuant",
            display_name="Load SVDQuant Model (DiT Accel)",
            category="DiT Accel/models",
            description=(
                "Loads a diffusion model with weights in 4 bits (SVDQuant), on any GPU: nunchaku files of FLUX, "
                "Qwen-Image and Z-Image in INT4 or NVFP4, and comfy_quant files of any model that ComfyUI knows. The "
                "result is an ordinary model: LoRA loaders, Sparse Attention and offloading work on it."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A file in models/diffusion_models. For a model in the older form of a folder, any of its "
                    "files.",
                ),
                io.Combo.Input(
                    "compute",
                    options=["auto", "w4a4", "w4a8", "w8a8", "w4a16", "nvfp4"],
                    default="auto",
                    tooltip=(
                        "Arithmetic of the 4-bit layers. auto: w4a4 on RTX 30 and 40 and A100, w4a16 elsewhere. w4a16: "
                        "weights are expanded for each use; the most exact, saves memory, not time. w8a8: 8-bit "
                        "arithmetic, faster on RTX 40 and newer. w4a8 and nvfp4 are not available yet."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for LoRA loaders, Sparse Attention and samplers.")],
            search_aliases=["nunchaku", "int4", "nvfp4", "4-bit", "quantized model"],
        )

    @classmethod
    def execute(cls, model_name, compute) -> io.NodeOutput:
        from ..accel.comfy.quant import svdquant

        path = Path(folder_paths.get_full_path_or_raise("diffusion_models", model_name))
        return io.NodeOutput(svdquant.load(path, compute))
