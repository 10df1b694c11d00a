"""Node: how near two videos are."""

from comfy_api.latest import io, ui


class DitAccelCompareVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelCompareVideos",
            display_name="Compare Videos (DiT Accel)",
            category="DiT Accel/report",
            description=(
                "PSNR, SSIM and flicker of a video against a reference of the same size, frame by frame, and both side "
                "by side with their difference."
            ),
            inputs=[
                io.Image.Input("reference", tooltip="Frames of the video to be close to, such as the dense run's."),
                io.Image.Input("test", tooltip="Frames of the other video: as many, of the same size."),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="PSNR and SSIM of every frame."),
                io.Image.Output(
                    display_name="side_by_side",
                    tooltip="Reference, test and their difference, amplified as the text says.",
                ),
                io.String.Output(display_name="text", tooltip="The numbers in words."),
                io.Float.Output(display_name="psnr", tooltip="Mean over the frames in dB; infinite if identical."),
                io.Float.Output(display_name="ssim", tooltip="Mean over the frames; 1 if identical."),
                io.Float.Output(
                    display_name="flicker",
                    tooltip="How much more or other the test changes from frame to frame, root mean square; 0 if it "
                    "changes as the reference does.",
                ),
            ],
            is_output_node=True,
            search_aliases=["PSNR", "SSIM", "video quality", "flicker", "difference"],
        )

    @classmethod
    def execute(cls, reference, test) -> io.NodeOutput:
        from comfy.utils import ProgressBar

        from ..accel.report.comparison import compare, side_by_side
        from ..accel.report.pictures import to_tensor

        progress = ProgressBar(len(reference))
        result = compare(reference, test, tick=lambda: progress.update(1))
        beside = side_by_side(reference, test, result.gain)
        plot, text = to_tensor(result.plot()), result.text()
        return io.NodeOutput(plot, beside, text, result.psnr, result.ssim, result.flicker, ui=ui.PreviewText(text))
