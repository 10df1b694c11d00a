"""Every way of sampling: how many forwards a run sees, and which of them are sparse."""

import pytest

from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.closeness import NETWORK, assert_close
from dit_accel.tests.support.graphs import SMALL, Graph, video

MODEL = "wan21_t2v"
OUTSIDE = "outside the budget's window"


def assert_sparse(run, forwards):
    """Every self-attention call of that many forwards."""
    assert run["forwards"] == forwards
    assert run["sparse"] == {"torch": CALLS[MODEL] * forwards}
    assert run["expected"] == CALLS[MODEL] * forwards
    assert set(run["dense"]) == {"cross-attention"}
    assert run["notes"] == []


@pytest.mark.parametrize(
    "sampler, steps, evaluations",
    [("euler", 3, 3), ("heun", 3, 5), ("dpmpp_2m", 3, 3), ("uni_pc", 4, 4), ("dpmpp_sde", 3, 5)],
)
def test_ksampler(play, sampler, steps, evaluations):
    graph, _ = video(MODEL, Graph.accelerate, sampler_name=sampler, steps=steps)
    assert_sparse(play(graph).run, evaluations)


def test_prompts_of_unlike_length_are_evaluated_apart(play):
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL))
    negative = graph.conditioning(200, tokens=31)
    graph.read(graph.ksampler(model, graph.empty_latent(SMALL), negative=negative), model)
    assert_sparse(play(graph).run, 2 * 3)


def test_prompts_do_not_share_state(play):
    """At cfg 0.5 both prompts weigh the same, so swapping them, and with it the order of their evaluation,
    changes nothing; a warm start from the other prompt's clusters would."""
    latents = []
    for swapped in (False, True):
        graph = Graph()
        model = graph.accelerate(graph.load(MODEL), top_p=0.5, floor=0.0)
        prompts = [graph.conditioning(100), graph.conditioning(200, tokens=31)]
        positive, negative = reversed(prompts) if swapped else prompts
        latent = graph.empty_latent(SMALL)
        graph.read(graph.ksampler(model, latent, cfg=0.5, positive=positive, negative=negative), model)
        result = play(graph)
        assert_sparse(result.run, 2 * 3)
        assert result.run["density"] < 0.9
        latents.append(result.latent)
    assert_close(*latents, units=NETWORK)


def test_cfg_one_evaluates_one_prompt(play):
    graph, _ = video(MODEL, Graph.accelerate, cfg=1.0)
    assert_sparse(play(graph).run, 3)


def test_slices_of_a_schedule(play):
    """Two KSamplerAdvanced share a schedule of 4 steps: its first 40 percent lie in the first slice."""
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL), dense_first=0.4)
    samples = graph.empty_latent(SMALL)
    for first in (0, 2):
        samples = graph.add(
            "KSamplerAdvanced",
            model=model,
            add_noise="enable" if first == 0 else "disable",
            noise_seed=7,
            steps=4,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=graph.conditioning(100),
            negative=graph.conditioning(200),
            latent_image=samples,
            start_at_step=first,
            end_at_step=first + 2,
            return_with_leftover_noise="enable" if first == 0 else "disable",
        )
    graph.read(samples, model)
    early, late = play(graph).runs[-2:]
    assert early["sparse"] == {} and early["dense"][OUTSIDE] == 2 * CALLS[MODEL]
    assert_sparse(late, 2)


@pytest.mark.parametrize("guider", ["BasicGuider", "CFGGuider"])
def test_custom_sampling(play, guider):
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL))
    graph.read(graph.custom_sampler(model, graph.empty_latent(SMALL), guider), model)
    assert_sparse(play(graph).run, 3)


@pytest.mark.parametrize("ours_first", [True, False])
def test_context_windows(play, ours_first):
    """5 latent frames in windows of 3 that overlap by 1: two windows a step."""

    def patch(graph, model):
        if ours_first:
            model = graph.accelerate(model)
        model = graph.add(
            "ContextWindowsManual",
            model=model,
            context_length=3,
            context_overlap=1,
            context_schedule="standard_static",
            context_stride=1,
            closed_loop=False,
            fuse_method="pyramid",
            dim=2,
            freenoise=False,
            cond_retain_index_list="",
            split_conds_to_windows=False,
            latent_retain_index_list="",
            causal_window_fix=False,
        )
        return model if ours_first else graph.accelerate(model)

    graph, _ = video(MODEL, patch, size=(17, 128, 128), cfg=1.0)
    assert_sparse(play(graph).run, 2 * 3)
