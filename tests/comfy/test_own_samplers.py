"""Samplers that call the model in a way of their own."""

import logging

import pytest
import torch

from dit_accel.tests.support.closeness import NETWORK, assert_close

LAYERS = 2  # of the model
SIGMAS = torch.tensor([1.0, 0.7, 0.0])
UNREACHED = "no forward pass reached this node"


@pytest.fixture
def sample(tiny, case):
    def run(model, function, sigmas=SIGMAS):
        import comfy.sample
        import comfy.samplers

        noise, latent = tiny.rand(*case.latent, seed=1), torch.zeros(case.latent)
        conditions = case.conditioning(2), case.conditioning(3)
        sampler = comfy.samplers.KSAMPLER(function)
        return comfy.sample.sample_custom(
            model, noise, 1.0, sampler, sigmas, *conditions, latent, disable_pbar=True, seed=1
        )

    return run


def calling_the_model(keys):
    """A sampler that calls the BaseModel itself, with those of the transformer_options that `keys` names, None for all;
    never with `sigmas`, which core adds to each of its own calls."""

    def function(network, x, sigmas, extra_args=None, **_):
        guider = network.inner_model
        options = extra_args["model_options"]["transformer_options"]
        options = options if keys is None else {key: options[key] for key in keys}
        assert "sigmas" not in options
        conditions = guider.conds["positive"][0]["model_conds"]
        inputs = {name: each.process_cond(batch_size=len(x)).cond for name, each in conditions.items()}
        for sigma in sigmas[:-1]:
            x = guider.inner_model.apply_model(x, sigma.expand(len(x)), transformer_options=options, **inputs)
        return x

    return function


def with_options_of_its_own(network, x, sigmas, extra_args=None, **_):
    model_options = {**extra_args["model_options"], "transformer_options": {"row": 0}}
    for sigma in sigmas[:-1]:
        x = network(x, sigma.expand(len(x)), **{**extra_args, "model_options": model_options})
    return x


def test_a_sampler_that_leaves_sigmas_out_is_sparse_by_its_noise_level(sample, tiny, model):
    sparse = tiny.sparse(model, dense_first=0.2)
    function = calling_the_model(None)
    assert_close(sample(sparse, function), sample(model, function), units=NETWORK)
    (run,) = tiny.history(sparse)
    assert [step.sigma for step in run.timeline.steps] == pytest.approx([1.0, 0.7])
    assert run.sparse_calls == LAYERS, "the first of the two is outside the window"


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("function", [with_options_of_its_own, calling_the_model([])], ids=["network", "model"])
def test_a_run_that_no_forward_reached_says_so(sample, tiny, model, function, recorded, caplog):
    from dit_accel.accel.comfy.sparse import patch

    sparse = patch.record(model, patch.ATTENTION) if recorded else tiny.sparse(model)
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        assert torch.equal(sample(sparse, function), sample(model, function))
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == run.forwards == 0
    assert UNREACHED in caplog.text


def test_a_run_without_a_step_is_not_blamed(sample, tiny, model):
    sparse = tiny.sparse(model)
    sample(sparse, lambda network, x, sigmas, **_: x, SIGMAS[:1])
    (run,) = tiny.history(sparse)
    assert run.notes == ()


def test_a_run_that_fails_before_its_first_forward_is_not_blamed(sample, tiny, model):
    def fail(*_, **__):
        raise KeyError("stand-in")

    sparse = tiny.sparse(model)
    with pytest.raises(KeyError, match="stand-in"):
        sample(sparse, fail)
    (run,) = tiny.history(sparse)
    assert run.notes == ()
