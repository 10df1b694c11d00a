"""Nodes: conditioning to and from a file."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..accel.comfy import folders

SUFFIX = ".safetensors"


class DitAccelSaveConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelSaveConditioning",
            display_name="Save Conditioning (DiT Accel)",
            category="DiT Accel/conditioning",
            description=(
                "Writes a conditioning to models/dit_accel, so that later runs need no text encoder: load it with "
                "Load Conditioning (DiT Accel)."
            ),
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What a text encoder node gives, with all its options."),
                io.String.Input(
                    "filename_prefix",
                    default="conditioning",
                    tooltip="Start of the file's name, with folders if you like; a number is added, nothing is "
                    "overwritten.",
                ),
            ],
            outputs=[io.String.Output(display_name="name", tooltip="The name to choose in the loading node.")],
            search_aliases=["cache conditioning", "save prompt", "cache text encoder"],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix) -> io.NodeOutput:
        from ..accel.comfy import conditioning_files as files

        path, name = folders.new_file(filename_prefix, SUFFIX)
        files.save(path, conditioning)
        return io.NodeOutput(name, ui=ui.PreviewText(name))


class DitAccelLoadConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelLoadConditioning",
            display_name="Load Conditioning (DiT Accel)",
            category="DiT Accel/conditioning",
            description=(
                "Reads a conditioning from models/dit_accel: one that Save Conditioning (DiT Accel) wrote, or a "
                "prompt of the small model that comes with the pack (dit_accel_demo_*)."
            ),
            inputs=[
                io.Combo.Input(
                    "conditioning_name",
                    options=folders.own_files(SUFFIX),
                    tooltip="A file in models/dit_accel.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="As it was when it was saved.")],
            search_aliases=["load prompt", "cached conditioning", "no text encoder"],
        )

    @classmethod
    def fingerprint_inputs(cls, conditioning_name):
        return folders.version_of(conditioning_name)

    @classmethod
    def execute(cls, conditioning_name) -> io.NodeOutput:
        from ..accel.comfy import conditioning_files as files

        return io.NodeOutput(files.load(Path(folder_paths.get_full_path_or_raise(folders.FOLDER, conditioning_name))))
