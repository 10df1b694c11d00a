"""Node: what a sampling run did."""

from comfy_api.latest import io


class DitAccelReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelReport",
            display_name="Sparse Attention Report (DiT Accel)",
            category="DiT Accel/report",
            description=(
                "Shows what the run that made these samples did: how dense attention was and how large its error, "
                "layer by layer and step by step, where the time went, which calls stayed dense and why, and what to "
                "change. "
                "Put it between the sampler and the decoder, and the report is saved with the pictures."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that was sampled, from Sparse Attention or Record."),
                io.Latent.Input("samples", tooltip="What the sampler made of it."),
                io.Model.Input(
                    "model_2",
                    optional=True,
                    tooltip="The other of two experts, as of Wan 2.2: the report then shows both parts of the run.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="samples", tooltip="The samples, unchanged."),
                io.Image.Output(display_name="picture"),
                io.String.Output(display_name="text"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            search_aliases=["sparse attention statistics", "density heatmap", "profiling", "time"],
        )

    @classmethod
    def execute(cls, model, samples, model_2=None) -> io.NodeOutput:
        from ..accel.comfy.inputs import latent_of, need_model
        from ..accel.comfy.sparse.model_report import keep_with_outputs, report_on

        report = report_on(latent_of(samples), need_model(model), model_2)
        keep_with_outputs(report.text, cls.hidden)
        return io.NodeOutput(
            samples,
            report.image,
            report.text,
            ui={"text": (report.text,), "dit_accel_report": [report.payload]},
        )
