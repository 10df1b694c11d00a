"""Nodes: conditioning to and from a file."""

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..accel.comfy import conditioning as files
from ..accel.comfy.models import FOLDER, own_folder


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
        prefix = os.path.normpath(filename_prefix)
        if os.path.basename(prefix) in ("", ".", ".."):
            raise ValueError(f"filename_prefix: expected the start of a file name, found {filename_prefix!r}")
        path, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(own_folder()))
        name = f"{stem}_{counter:05}_.safetensors"
        files.save(Path(path, name), conditioning)
        # As the loading node lists it.
        name = os.path.join(subfolder, name)
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
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A file in models/dit_accel.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="As it was when it was saved.")],
            search_aliases=["load prompt", "cached conditioning", "no text encoder"],
        )

    @classmethod
    def fingerprint_inputs(cls, conditioning_name):
        # The name is None while it comes through a link.
        path = conditioning_name and folder_paths.get_full_path(FOLDER, conditioning_name)
        if path is None:
            return None
        status = Path(path).stat()
        return status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls, conditioning_name) -> io.NodeOutput:
        return io.NodeOutput(files.load(Path(folder_paths.get_full_path_or_raise(FOLDER, conditioning_name))))
