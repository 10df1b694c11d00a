"""Official templates run up to their samplers' output, on tiny models of their architecture."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.templates import model_edges, read_template, upstream

# Loaders of text encoders, VAEs and LoRAs, and the inputs that their stand-in takes over.
STANDINS = {
    "CLIPLoader": ("StandinClip", ()),
    "DualCLIPLoader": ("StandinClip", ()),
    "VAELoader": ("StandinVae", ()),
    "LoraLoaderModelOnly": ("StandinLora", ("model",)),
    "LoraLoader": ("StandinLora", ("model", "clip")),
}
SMALLER = {"width": 128, "height": 128, "length": 5}


@dataclass(frozen=True)
class Case:
    """sampler: id of the last one. models: model file in the template -> tiny checkpoint. steps: of the
    schedule. forwards: of each sampling run."""

    template: str
    sampler: str
    models: dict[str, str]
    steps: int
    forwards: int


CASES = [
    Case("text_to_video_wan", "3", {"wan2.1_t2v_1.3B_fp16": "wan21_t2v"}, 3, 3),
    Case(
        "video_wan2_2_14B_fun_inpaint",
        "95",
        {
            "wan2.2_fun_inpaint_high_noise_14B_fp8_scaled": "wan22_inpaint_high",
            "wan2.2_fun_inpaint_low_noise_14B_fp8_scaled": "wan22_inpaint_low",
        },
        4,
        2,
    ),
    Case("video_wan_vace_14B_t2v", "3", {"wan2.1_vace_14B_fp16": "wan21_vace"}, 4, 4),
    Case(
        "video_hunyuan_video_1.5_720p_t2v",
        "127",
        {"hunyuanvideo1.5_720p_t2v_fp16": "hunyuan_video_15"},
        3,
        3,
    ),
]


def shrink(case, server_base):
    graph = upstream(read_template(case.template), case.sampler)
    for node in graph.values():
        inputs = node["inputs"]
        if node["class_type"] in STANDINS:
            node["class_type"], kept = STANDINS[node["class_type"]]
            node["inputs"] = {name: inputs[name] for name in kept}
            continue
        if node["class_type"] == "UNETLoader":
            checkpoint = case.models[inputs["unet_name"].removesuffix(".safetensors")]
            inputs["unet_name"] = f"{checkpoint}.safetensors"
        if node["class_type"] == "LoadImage":
            path = server_base / "input" / inputs["image"]
            path.parent.mkdir(exist_ok=True)
            Image.linear_gradient("L").convert("RGB").save(path)
        if "steps" in inputs:
            inputs["steps"] = case.steps
        inputs.update({name: size for name, size in SMALLER.items() if name in inputs})
    return graph


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.template)
def test_sparse_calls_in_every_sampling_run(server, play, server_base, case, pattern):
    graph = shrink(case, server_base)
    nodes = server.request("/object_info")
    edges = model_edges(graph, nodes)
    assert len(edges) == len(case.models)
    for key, name in edges:
        model = graph.accelerate(graph[key]["inputs"][name], pattern=pattern, top_p=0.5, floor=0.0)
        graph[key]["inputs"][name] = model
        graph.add("StandinHistory", model=model, samples=[case.sampler, 0])
    graph.add("StandinReadLatent", samples=[case.sampler, 0])
    result = play(graph)

    assert len(result.runs) == len(edges)
    for run, checkpoint in zip(result.runs, case.models.values(), strict=True):
        assert run["forwards"] == case.forwards
        assert run["sparse"] == {"reference": CALLS[checkpoint] * run["forwards"]}
        assert run["pattern"] == pattern
        assert run["density"] < 1
    assert np.isfinite(result.latent).all() and result.latent.std() > 0
