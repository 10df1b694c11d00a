"""Families without a template: a loader, what makes the family's latent, a sampler."""

from dit_accel.tests.support.graphs import Graph
from dit_accel.tests.support.template_cases.case import Case

_SIZE = {"width": 128, "height": 128, "batch_size": 1}


def _case(checkpoint: str, prepare, loader: str = "UNETLoader") -> Case:
    """prepare: adds to the graph what stands in front of the sampler, and returns the sampler's inputs."""
    graph = Graph()
    model = graph.add(loader, unet_name=f"{checkpoint}.safetensors", weight_dtype="default")
    sampler, _ = graph.ksampler(model, steps=2, **prepare(graph))
    return Case(checkpoint, sampler, {checkpoint: checkpoint}, 2, 2, graph=graph)


def _empty(kind: str, length: int, **prompt):
    """An empty latent of a video of that many frames, and prompts of a kind of their own."""

    def prepare(graph: Graph) -> dict:
        return {
            "latent": graph.add(kind, length=length, **_SIZE),
            "positive": graph.conditioning(100, **prompt),
            "negative": graph.conditioning(200, **prompt),
        }

    return prepare


def _start_image(graph: Graph) -> dict:
    image = graph.add("LoadImage", image="start.png")
    vae = graph.add("StandinVae")
    return {"latent": graph.add("CosmosPredict2ImageToVideoLatent", vae=vae, start_image=image, length=9, **_SIZE)}


def _pose(graph: Graph) -> dict:
    """Without a video of the face: its encoder would take most of this test's time."""
    image = graph.add("LoadImage", image="character.png")
    video, _ = graph.add("GetVideoComponents", video=graph.add("LoadVideo", file="driving.mp4"))
    vision = graph.add("StandinVision", clip_name="clip_vision_h.safetensors")
    node, _ = graph.add(
        "WanAnimateToVideo",
        positive=graph.conditioning(100),
        negative=graph.conditioning(200),
        vae=graph.add("StandinVae"),
        clip_vision_output=graph.add("CLIPVisionEncode", clip_vision=vision, image=image, crop="none"),
        reference_image=image,
        pose_video=[video, 0],
        continue_motion_max_frames=5,
        video_frame_offset=0,
        length=5,
        **_SIZE,
    )
    return {"positive": [node, 0], "negative": [node, 1], "latent": [node, 2], "cfg": 1.0}


CASES = [
    _case("cogvideox_t2v", _empty("EmptyHunyuanLatentVideo", 9)),
    _case("wan22_animate", _pose),
    _case("mochi", _empty("EmptyMochiLatentVideo", 13, padding=4), "StandinConfiguredModel"),
    _case("cosmos", _empty("EmptyCosmosLatentVideo", 17), "StandinConfiguredModel"),
    _case("cosmos_predict2_i2v", _start_image, "StandinConfiguredModel"),
]
