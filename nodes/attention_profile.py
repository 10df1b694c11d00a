"""Nodes: measuring what a budget costs on a model, and the profile that meets a target."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..accel.comfy import folders
from .types import ProfileType

SUFFIX = ".json"


class DitAccelRecord(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelRecord",
            display_name="Record (DiT Accel)",
            category="DiT Accel/report",
            description=(
                "Measures, while you sample as always, how the error of sparse attention depends on its budget, for "
                "every layer and head at three noise levels. Profile (DiT Accel) makes a budget of it. The result of "
                "the run does not change."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A video model, before or after Sparse Attention (DiT Accel)."),
                io.Combo.Input(
                    "what",
                    options=["attention", "linear"],
                    default="attention",
                    tooltip="attention: for Profile and Report. linear: ranges of the inputs of linear layers, which "
                    "quantisation will use; no node reads them yet.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler.")],
            search_aliases=["calibrate sparse attention", "sensitivity"],
        )

    @classmethod
    def execute(cls, model, what) -> io.NodeOutput:
        from ..accel.comfy.inputs import need_model
        from ..accel.comfy.sparse import patch

        return io.NodeOutput(patch.record(need_model(model), what))


class DitAccelProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelProfile",
            display_name="Profile (DiT Accel)",
            category="DiT Accel/report",
            description=(
                "Finds, for every layer and head, the budget that meets a target, from what Record (DiT Accel) has "
                "measured in the run that made these samples. Connect it to Attention Budget, or save it."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that was recorded and sampled."),
                io.Latent.Input("samples", tooltip="What the sampler made of it."),
                io.Combo.Input(
                    "target",
                    options=["error", "speed"],
                    default="error",
                    tooltip="error: relative L2 of the attention output, alike in all layers. speed: how many times as "
                    "fast a sparse step shall be as a dense one, the whole model counted.",
                ),
                io.Float.Input(
                    "target_value",
                    default=0.05,
                    min=0.001,
                    max=20.0,
                    step=0.01,
                    tooltip="error: such as 0.05. speed: such as 1.8.",
                ),
            ],
            outputs=[
                ProfileType.Output(display_name="profile"),
                io.Image.Output(display_name="picture", tooltip="Error against density, layer by layer."),
                io.String.Output(display_name="text", tooltip="What was found, and the predicted time."),
            ],
            is_output_node=True,
            search_aliases=["calibrate sparse attention", "budget per layer"],
        )

    @classmethod
    def execute(cls, model, samples, target, target_value) -> io.NodeOutput:
        from ..accel.comfy.inputs import latent_of, need_model
        from ..accel.comfy.sparse.model_profile import profile_of

        result = profile_of(latent_of(samples), need_model(model), target, target_value)
        return io.NodeOutput(result.profile, result.image, result.text, ui={"text": (result.text,)})


class DitAccelSaveProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelSaveProfile",
            display_name="Save Profile (DiT Accel)",
            category="DiT Accel/report",
            description="Writes a profile to models/dit_accel, for Load Profile (DiT Accel) in other workflows.",
            inputs=[
                ProfileType.Input("profile", tooltip="From Profile (DiT Accel)."),
                io.String.Input(
                    "filename_prefix",
                    default="profile",
                    tooltip="Start of the file's name, with folders if you like; a number is added, nothing is "
                    "overwritten.",
                ),
            ],
            outputs=[io.String.Output(display_name="name", tooltip="The name to choose in the loading node.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, profile, filename_prefix) -> io.NodeOutput:
        from ..accel.attention.profiles.profile import write_profile

        path, name = folders.new_file(filename_prefix, SUFFIX)
        write_profile(path, profile)
        return io.NodeOutput(name, ui=ui.PreviewText(name))


class DitAccelLoadProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelLoadProfile",
            display_name="Load Profile (DiT Accel)",
            category="DiT Accel/report",
            description="Reads a profile that Save Profile (DiT Accel) wrote. Connect it to Attention Budget.",
            inputs=[
                io.Combo.Input(
                    "profile_name", options=folders.own_files(SUFFIX), tooltip="A file in models/dit_accel."
                ),
            ],
            outputs=[ProfileType.Output(display_name="profile")],
        )

    @classmethod
    def fingerprint_inputs(cls, profile_name):
        return folders.version_of(profile_name)

    @classmethod
    def execute(cls, profile_name) -> io.NodeOutput:
        from ..accel.attention.profiles.profile import read_profile

        return io.NodeOutput(read_profile(Path(folder_paths.get_full_path_or_raise(folders.FOLDER, profile_name))))
