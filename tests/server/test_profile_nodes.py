"""From a recorded run to a profile, and back into a budget."""

import json
import re

import numpy as np
import pytest

from dit_accel.accel.headless.server import GraphFailed, GraphRejected
from dit_accel.tests.support import bundled_graphs as bundled
from dit_accel.tests.support.graphs import SMALL, Graph, nonce, video

MODEL = "wan21_t2v"


def recorded(graph: Graph, what: str = "attention", **settings) -> tuple[list, list]:
    """The bundled model and the samples of a run that Record watched."""
    model = graph.record(bundled.load(graph), what)
    return model, bundled.sample(graph, model, **settings)


def profile(graph: Graph, model: list, samples: list, target: str = "error", value: float = 0.05) -> list:
    return graph.add("DitAccelProfile", model=model, samples=samples, target=target, target_value=value)


def saved(play, prefix: str = "profile", **settings) -> str:
    """The name of the saved profile of an ordinary run."""
    graph = Graph()
    found = profile(graph, *recorded(graph, steps=10), **settings)
    graph.add("DitAccelSaveProfile", profile=found, filename_prefix=f"{prefix}{nonce()}")
    return play(graph).outputs["text"][-1]


@pytest.fixture(scope="module")
def measured(play) -> str:
    """A saved profile for the error 0.05."""
    return saved(play)


def content(server, name: str) -> dict:
    return json.loads((server.base / "models" / "dit_accel" / name).read_text())


def with_profile(graph: Graph, model: list, name: str, **settings) -> list:
    loaded = graph.add("DitAccelLoadProfile", profile_name=name)
    return graph.accelerate(model, profile=loaded, **settings)


def test_saved_loaded_and_used(play, server, measured):
    kept = content(server, measured)
    assert (kept["model"], kept["heads"], kept["pattern"]) == ("WanModel", 2, "svg2")
    assert kept["layers"] == list(range(bundled.BLOCKS))
    assert (kept["target"], kept["target_value"], kept["met"]) == ("error", 0.05, True)
    assert min(kept["density"]) < 0.9
    # A layer that keeps everything has no error.
    whole = [layer for layer, density in enumerate(kept["density"]) if density == 1]
    assert all(0 < error <= 0.0501 for layer, error in enumerate(kept["error"]) if layer not in whole)
    graph = Graph()
    model = with_profile(graph, bundled.load(graph), measured, guard="off")
    samples = bundled.sample(graph, model)
    graph.add("DitAccelReport", model=model, samples=samples)
    graph.read(samples, model)
    result = play(graph)
    assert result.run["sparse"] == {"torch": 4 * (bundled.BLOCKS - len(whole))}
    assert result.run["dense"].get("the profile keeps this layer whole", 0) == 4 * len(whole)
    assert "budget custom with a profile" in result.outputs["dit_accel_report"][0]["text"]
    promised = [density for density in kept["density"] if density < 1]
    assert result.run["density"] == pytest.approx(np.mean(promised), abs=0.1)


def test_what_is_spent_is_what_was_asked(play, measured):
    """Another seed, where every call is compared with dense attention. The clip is too small for more than that."""
    graph = Graph()
    model = with_profile(graph, bundled.load(graph), measured, guard="off", dense_first=0.2)
    model = graph.add("StandinExactErrors", model=model, name="profile")
    samples = bundled.sample(graph, model, seed=8, steps=10)
    graph.add("StandinReadErrors", name="profile", samples=samples)
    assert 0.04 < np.mean(play(graph).outputs["errors"]) < 0.07


def test_the_text_and_the_picture(play):
    graph = Graph()
    found = profile(graph, *recorded(graph))
    graph.add("PreviewImage", images=[found[0], 1])
    result = play(graph)
    (text,) = result.outputs["text"]
    assert text.startswith("error 0.05: svg2 on WanModel, 6 layers of 2 heads; expected density 0.")
    assert "a run of 4 steps " in text
    assert len(result.outputs["images"]) == 1


def test_no_speed_without_a_fast_kernel(play):
    graph = Graph()
    profile(graph, *recorded(graph), target="speed", value=1.8)
    (text,) = play(graph).outputs["text"]
    assert text.startswith("speed 1.8 (not met)")
    assert "sparse attention brings no speed here: " in text and "this profile is for the error 0.05" in text


def test_an_error_out_of_reach(play):
    """Some layers lose more than that with the largest budget that is measured: they are kept whole, and counted."""
    graph = Graph()
    profile(graph, *recorded(graph), value=0.001)
    (text,) = play(graph).outputs["text"]
    assert re.search(r"[1-6] of 6 layers keep everything: even top_p 0\.9+ leaves them an error above 0\.001", text)


@pytest.mark.parametrize(
    "target, value, named",
    [("error", 1.5, "target_value: expected an error above 0 and up to 1, found 1.5"), ("speed", 1.0, "above 1")],
)
def test_absurd_targets(play, target, value, named):
    graph = Graph()
    profile(graph, *recorded(graph), target=target, value=value)
    with pytest.raises(GraphFailed) as failure:
        play(graph)
    assert failure.value.node_type == "DitAccelProfile" and named in failure.value.message


@pytest.mark.parametrize("value", [0.0, -1.0, 1000.0])
def test_targets_outside_of_the_limits(play, value):
    graph = Graph()
    profile(graph, *recorded(graph), value=value)
    with pytest.raises(GraphRejected, match="target_value"):
        play.server.post(graph)


@pytest.mark.parametrize("case", ["never", "linear", "samples", "unsampled", "no step"])
def test_nothing_was_recorded(play, case):
    graph = Graph()
    if case == "never":
        model = graph.accelerate(bundled.load(graph))
        samples = bundled.sample(graph, model, steps=1)
    elif case == "no step":
        model, _ = recorded(graph)
        samples = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=7),
            guider=graph.add("BasicGuider", model=model, conditioning=graph.conditioning(100)),
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=graph.add(
                "SplitSigmas",
                sigmas=graph.add("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0),
                step=0,
            ),
            latent_image=graph.empty_latent(SMALL),
        )
    else:
        model, samples = recorded(graph, "linear" if case == "linear" else "attention", steps=1)
    if case == "samples":
        samples = graph.add("LatentMultiply", samples=samples, multiplier=0.5)
    if case == "unsampled":
        # A model of its own, which no other test has sampled.
        model = graph.record(graph.add("ModelSamplingSD3", model=graph.load(MODEL), shift=2.5))
    profile(graph, model, samples)
    with pytest.raises(GraphFailed) as failure:
        play(graph)
    assert failure.value.node_type == "DitAccelProfile"
    assert {
        "never": "model: expected a recording of attention, by Record (DiT Accel), found one that no Record",
        "linear": "found one of linear layers",
        "samples": "of this model made these samples",
        "unsampled": "this model has not been sampled",
        "no step": "samples: nothing was measured in the run that made them: no attention call came by",
    }[case] in failure.value.message
    assert play(video(MODEL)[0]).latent is not None


@pytest.mark.parametrize("case", ["heads", "model", "pattern", "depth"])
def test_a_profile_of_something_else(play, measured, case):
    """Both sides are named; the server goes on."""
    graph = Graph()
    if case == "pattern":
        model = with_profile(graph, bundled.load(graph), measured, pattern="pooled")
        samples = bundled.sample(graph, model, steps=1)
    else:
        name = {"heads": "wan21_i2v_wide", "model": "hunyuan_video", "depth": MODEL}[case]
        model = with_profile(graph, graph.load(name), measured)
        samples = graph.ksampler(model, graph.empty_latent(SMALL), steps=1, cfg=1.0)
    graph.read(samples, model)
    with pytest.raises(GraphFailed) as failure:
        play(graph)
    found = {
        "heads": "WanModel with 2 layers of 5 heads and svg2",
        "model": "HunyuanVideo with 2 layers of 2 heads and svg2",
        "pattern": "WanModel with 6 layers of 2 heads and pooled",
        "depth": "WanModel with 2 layers of 2 heads and svg2",
    }[case]
    side = "profile: measured on WanModel with 6 attention layers of 2 heads and svg2, found "
    assert side + found in failure.value.message
    assert play(video(MODEL)[0]).latent is not None


@pytest.mark.parametrize("case", ["half", "foreign", "another version", "a row too short", "NaN"])
def test_a_bad_file_is_refused_by_name(play, server, measured, case):
    path = server.base / "models" / "dit_accel" / f"bad{nonce()}.json"
    text = (server.base / "models" / "dit_accel" / measured).read_text()
    right = json.loads(text)
    path.write_text(
        {
            "half": text[: len(text) // 2],
            "foreign": json.dumps({"nodes": []}),
            "another version": json.dumps({**right, "version": 99}),
            "a row too short": json.dumps({**right, "top_p": [row[1:] for row in right["top_p"]]}),
            "NaN": json.dumps({**right, "floor": float("nan")}),
        }[case]
    )
    graph = Graph()
    model = with_profile(graph, graph.load(MODEL), path.name)
    graph.read(graph.ksampler(model, graph.empty_latent(SMALL), steps=1), model)
    with pytest.raises(GraphFailed) as failure:
        play(graph)
    assert failure.value.node_type == "DitAccelLoadProfile"
    assert str(path) in failure.value.message and "expected" in failure.value.message
    assert "found" in failure.value.message


def test_a_missing_file_is_refused_before_the_run(play):
    graph = Graph()
    model = with_profile(graph, graph.load(MODEL), "gone.json")
    graph.read(graph.ksampler(model, graph.empty_latent(SMALL)), model)
    with pytest.raises(GraphRejected, match="profile_name"):
        play(graph)


def test_profiles_are_listed_apart_from_other_files(play, server, measured):
    gate = server.base / "models" / "dit_accel" / "gate"
    gate.mkdir(exist_ok=True)
    (gate / "card.json").write_text("{}")
    graph = Graph()
    graph.add("DitAccelSaveConditioning", conditioning=graph.conditioning(5), filename_prefix=f"apart{nonce()}")
    (conditioning,) = play(graph).outputs["text"]

    def options(node, name):
        return set(server.object_info(node)["input"]["required"][name][1]["options"])

    profiles = options("DitAccelLoadProfile", "profile_name")
    assert measured in profiles and all(name.endswith(".json") and "gate" not in name for name in profiles)
    conditionings = options("DitAccelLoadConditioning", "conditioning_name")
    assert conditioning in conditionings and not conditionings & profiles
