"""Which run a report is about, for every way of sampling, and what it says where it knows none."""

import pytest

from dit_accel.tests.support.graphs import SMALL, Graph
from dit_accel.tests.support.reports import half, payloads, report, small, texts

MODEL = "wan21_t2v"
UNKNOWN = "of this model made these samples"


def test_each_sampler_has_its_own_report(play):
    """The report passes the samples on: behind the first one stands the second sampler."""
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL))
    first = report(graph, model, small(graph, model, steps=3))
    second = report(graph, model, small(graph, model, seed=8, after=first))
    again = report(graph, model, graph.add("StandinAfter", samples=first, after=second))
    assert again
    counts = [len(payload["runs"][0]["steps"]) for payload in payloads(play(graph))]
    assert counts == [3, 2, 3]


def test_a_report_that_is_added_after_the_run(play):
    """The sampler's result comes from ComfyUI's cache, and its run is still known."""
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL), fallback="dense", min_tokens=1)
    samples = small(graph, model)
    graph.read(samples, model)
    before = play(graph)
    report(graph, model, samples)
    after = play(graph)
    assert "sparse calls" in before.log and "sparse calls" not in after.log
    assert len(payloads(after)[0]["runs"]) == 1


@pytest.mark.parametrize("later", ["StandinLora", "DitAccelRecord"])
def test_a_model_that_later_nodes_have_cloned(play, later):
    """The sampler may have a later clone than the report, or an earlier one."""
    graph = Graph()
    early = graph.accelerate(graph.load(MODEL))
    late = graph.record(early) if later == "DitAccelRecord" else graph.add(later, model=early)
    first = small(graph, late)
    second = small(graph, early, seed=8, after=first)
    report(graph, early, graph.add("StandinAfter", samples=first, after=second))
    report(graph, late, second)
    assert [len(payload["runs"]) for payload in payloads(play(graph))] == [1, 1]


def test_the_last_eight_runs_are_known(play):
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL), fallback="dense")
    runs = []
    for seed in range(9):
        runs.append(small(graph, model, seed, after=runs[-1] if runs else None, steps=1))
    for samples in runs:
        report(graph, model, graph.add("StandinAfter", samples=samples, after=runs[-1]))
    first, *others = payloads(play(graph))
    assert first["runs"] == [] and UNKNOWN in first["text"] and "The last 8 are remembered" in first["text"]
    assert [len(payload["runs"]) for payload in others] == [1] * 8


def test_samples_of_another_run(play):
    """Of another model, never sampled, changed on the way, and the model's own."""
    graph = Graph()
    loaded = graph.load(MODEL)
    ours, other = (graph.accelerate(loaded, min_tokens=tokens) for tokens in (0, 1))
    own = small(graph, ours)
    others = small(graph, other, seed=8, after=own)
    for samples in (others, graph.empty_latent(SMALL), graph.add("LatentMultiply", samples=own, multiplier=0.5), own):
        report(graph, ours, graph.add("StandinAfter", samples=samples, after=others))
    result = play(graph)
    assert [len(payload["runs"]) for payload in payloads(result)] == [0, 0, 0, 1]
    assert all(text.startswith("No report: ") and UNKNOWN in text for text in texts(result)[:3])


def test_a_model_without_our_nodes(play):
    graph = Graph()
    model = graph.load(MODEL)
    node, _ = report(graph, model, small(graph, model))
    graph.add("PreviewImage", images=[node, 1])
    result = play(graph)
    assert payloads(result)[0]["runs"] == [] and len(result.outputs["images"]) == 1
    assert "has passed neither Sparse Attention (DiT Accel) nor Record (DiT Accel)" in texts(result)[0]


def test_a_model_that_was_not_sampled(play):
    graph = Graph()
    # Settings that no other test has: the model comes from a cache.
    model = graph.accelerate(graph.load(MODEL), min_tokens=1234)
    report(graph, model, graph.empty_latent(SMALL))
    assert "has not been sampled" in texts(play(graph))[0]


@pytest.mark.parametrize("place", [0, 1, 4])
def test_an_empty_slice_of_the_schedule(play, place):
    """KSamplerAdvanced gives its latent back and samples nothing."""
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL), min_tokens=2000 + place)
    report(graph, model, half(graph, model, graph.empty_latent(SMALL), place, place))
    result = play(graph)
    assert payloads(result)[0]["runs"] == [] and "has not been sampled" in texts(result)[0]


def custom(graph: Graph, model: list, sigmas: list) -> list:
    return graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=7),
        guider=graph.add("BasicGuider", model=model, conditioning=graph.conditioning(100)),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=sigmas,
        latent_image=graph.empty_latent(SMALL),
    )


def schedule(graph: Graph, model: list, steps: int = 3) -> list:
    return graph.add("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0)


def test_no_step_at_all(play):
    """SamplerCustomAdvanced runs a schedule of one sigma: it only adds noise."""
    graph = Graph()
    model = graph.record(graph.accelerate(graph.load(MODEL)))
    sigmas = graph.add("SplitSigmas", sigmas=schedule(graph, model), step=0)
    report(graph, model, custom(graph, model, sigmas))
    (payload,) = payloads(play(graph))
    (run,) = payload["runs"]
    assert run["steps"] == [] and run["density"] == []
    assert "0 sparse calls; 0 dense calls" in payload["text"]


def test_custom_sampling(play):
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL))
    report(graph, model, custom(graph, model, schedule(graph, model)))
    (run,) = payloads(play(graph))[0]["runs"]
    assert len(run["steps"]) == 3 and run["title"] == "svg2 on WanModel"


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde", "dpmpp_2m"])
def test_steps_are_those_of_the_sampler(play, sampler):
    """However often it evaluates the model in one of them."""
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL))
    report(graph, model, small(graph, model, sampler_name=sampler, steps=3, cfg=4.0))
    (run,) = payloads(play(graph))[0]["runs"]
    assert [step["number"] for step in run["steps"]] == [1, 2, 3]


def test_two_experts(play):
    """Both parts in their order, however the models are connected; the first part alone has one."""
    graph = Graph()
    loaded = graph.load(MODEL)
    high, low = graph.accelerate(loaded, pattern="svg2"), graph.accelerate(loaded, pattern="radial", max_density=0.5)
    first = half(graph, high, graph.empty_latent(SMALL), 0, 1)
    second = half(graph, low, first, 1, 4)
    report(graph, high, second, model_2=low)
    report(graph, low, second, model_2=high)
    report(graph, low, second)
    report(graph, high, graph.add("StandinAfter", samples=first, after=second), model_2=low)
    both, swapped, last, start = payloads(play(graph))
    assert both == swapped
    assert [run["title"] for run in both["runs"]] == [
        "First model: svg2 on WanModel",
        "Second model: radial on WanModel",
    ]
    assert [len(run["steps"]) for run in both["runs"]] == [1, 3]
    assert [run["title"] for run in last["runs"]] == ["radial on WanModel"]
    assert [run["title"] for run in start["runs"]] == ["svg2 on WanModel"]
