"""Every enabled family, with its awkward inputs: what is sparse is what should be, and nothing else."""

import pytest
import torch

from dit_accel.accel.attention import executor, reasons
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.comfy.families import FAMILIES
from dit_accel.tests.support.closeness import NETWORK, assert_close, distance

NAMES = [
    "wan t2v",
    "wan t2v odd size",
    "wan i2v",
    "wan ti2v 5b",
    "wan fun control with reference",
    "wan fun inpaint",
    "wan in-context latents",
    "wan time concat",
    "wan vace",
    "wan vace with a reference frame",
    "wan camera",
    "wan 2.2 camera",
    "wan s2v",
    "wan s2v audio only",
    "wan humo",
    "wan humo 1.7b audio only",
    "wan scail",
    "wan scail 2 replacement",
    "wan animate",
    "wan dancer",
    "wan dancer global",
    "hunyuan 1",
    "hunyuan 1 reference latent",
    "hunyuan 1 token replace",
    "hunyuan 1.5 i2v",
    "hunyuan 1.5 with byt5 and vision",
    "cogvideox 1 t2v learned positions",
    "cogvideox 1 i2v odd size",
    "cogvideox 1.5 i2v odd frames",
    "mochi",
    "mochi padded text",
    "mochi text mask of two rows",
    "cosmos 1",
    "cosmos 1 i2v",
    "cosmos predict 2 odd size",
    "cosmos predict 2 i2v",
    "cosmos predict 2 i2v with learned positions",
    "kandinsky 5 lite",
    "kandinsky 5 pro i2v",
    "ltx video",
    "ltx video odd size",
    "ltx video i2v",
    "ltx video guides",
    "ltx video guides of half size",
    "ltx 2",
    "ltx 2 without audio",
    "ltx 2 reference audio",
    "ltx 2.3",
    "ltx 2.3 guides",
    "minimax h3",
    "minimax h3 odd size",
    "minimax h3 keyframes",
    "minimax h3 references",
]


@pytest.fixture(scope="module", params=NAMES)
def case(request, tiny):
    return next(case for case in tiny.CASES if case.name == request.param)


@pytest.fixture(scope="module")
def model(case):
    with torch.inference_mode():
        return case.model()


@pytest.fixture
def recorded(monkeypatch):
    """Every executed sparse call as (q, k, v, plan, out)."""
    calls = []
    execute = executor.execute

    def spy(q, k, v, plan, **kwargs):
        out = execute(q, k, v, plan, **kwargs)
        calls.append((q, k, v, plan, out))
        return out

    monkeypatch.setattr(executor, "execute", spy)
    return calls


def test_every_case_is_listed(tiny):
    assert [case.name for case in tiny.CASES] == NAMES


def test_every_row_names_a_class_of_this_comfyui(comfy):
    import importlib

    for path in FAMILIES:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_density_one_equals_dense(tiny, case, model):
    sparse = tiny.sparse(model)
    assert_close(tiny.sample(sparse, case), tiny.sample(model, case), units=NETWORK)
    (run,) = tiny.history(sparse)
    assert run.sparse == {"torch": case.calls * run.forwards}
    assert run.expected == case.calls * run.forwards
    assert run.density == pytest.approx(1.0)
    assert not set(run.dense) - reasons.NOT_SELF_ATTENTION - {reasons.FULL_PRECISION}


@pytest.mark.spread(1)
@pytest.mark.parametrize("spent", [{"top_p": 0.5}, {"top_p": 0.2}, {"top_p": 0.9, "max_density": 0.1}], ids=str)
def test_other_tokens_are_exact_and_keep_their_own_blocks(tiny, case, model, recorded, spent):
    sparse = tiny.sparse(model, floor=0.0, **spent)
    tiny.sample(sparse, case, steps=1)
    assert len(recorded) == tiny.history(sparse)[0].sparse_calls > 0
    for q, k, v, plan, out in recorded:
        video = torch.zeros(q.shape[2], dtype=torch.bool)
        video[case.prefix : case.prefix + q.shape[2] - case.extra] = True

        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert_close(out[:, :, ~video], dense[:, :, ~video], units=48)
        assert distance(out[:, :, video], dense[:, :, video]) > 1e-3, "nothing was dropped"
        for order in (plan.queries, plan.keys):
            first = order.offsets[:, 1]
            assert (first == case.extra).all()
            assert not video[order.tokens[:, : case.extra].long()].any()
            assert video[order.tokens[:, case.extra :].long()].all()


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "svg2"])
@pytest.mark.parametrize("name", ["wan t2v odd size", "wan fun control with reference", "hunyuan 1"])
def test_other_patterns_keep_everything_or_less(tiny, name, pattern):
    case = next(case for case in tiny.CASES if case.name == name)
    model = case.model()
    dense = tiny.sample(model, case)
    results = []
    for budget in ({}, {"top_p": 0.5, "floor": 0.0}):
        sparse = tiny.sparse(model, pattern=pattern, **budget)
        results.append(tiny.sample(sparse, case))
        (run,) = tiny.history(sparse)
        assert run.sparse == {"torch": case.calls * run.forwards}
        assert (run.density == pytest.approx(1.0)) == (not budget)
    assert_close(results[0], dense, units=NETWORK)
    assert distance(results[1], dense) > 1e-3


@pytest.mark.parametrize(
    ("pattern", "token_order", "said"),
    [("svg2", "cube", True), ("svg2", "auto", False), ("radial", "morton", True), ("window", "raster", False)],
)
def test_a_token_order_without_effect_is_said_once(tiny, pattern, token_order, said):
    case = tiny.CASES[0]
    sparse = tiny.sparse(case.model(), pattern=pattern, token_order=token_order)
    tiny.sample(sparse, case)
    (run,) = tiny.history(sparse)
    assert run.notes == ((f"token_order {token_order} has no effect on {pattern}",) if said else ())


def test_density_is_that_of_the_expanded_mask(tiny, case, model, recorded):
    sparse = tiny.sparse(model, top_p=0.5, floor=0.0)
    tiny.sample(sparse, case, steps=1)
    densities = []
    for q, _, _, plan, _ in recorded:
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                labels = []
                for order in (plan.queries, plan.keys):
                    row = order.index[b, h]
                    label = torch.empty(q.shape[2], dtype=torch.long)
                    sizes = order.offsets[row].diff().long()
                    label[order.tokens[row].long()] = torch.arange(len(sizes)).repeat_interleave(sizes)
                    labels.append(label)
                mask = plan.keep[b, h][labels[0]][:, labels[1]]
                assert mask.any(dim=1).all()
                densities.append(mask.float().mean())
    (run,) = tiny.history(sparse)
    assert run.density == pytest.approx(torch.stack(densities).double().mean().item(), rel=1e-5)
    assert 0.05 < run.density < 0.95


def test_batch_of_two_videos(tiny, case, model):
    videos = 2 if case.batches else 1
    sparse = tiny.sparse(model)
    both = (tiny.sample(each, case, steps=1, batch=videos) for each in (sparse, model))
    assert_close(*both, units=NETWORK)
    assert tiny.history(sparse)[0].sparse_calls == case.calls


@pytest.mark.parametrize("name", ["hunyuan 1", "hunyuan 1.5 i2v"])
def test_padded_text_stays_dense_and_never_leaks(tiny, name):
    """A text mask sends the joint attention to the dense function; what the padding holds changes nothing."""
    case = next(case for case in tiny.CASES if case.name == name)
    model = case.model()
    mask = torch.ones(1, case.text, dtype=torch.long)
    mask[:, 12:] = 0
    first, second = (case.conditioning(2, attention_mask=mask) for _ in range(2))
    # Core feeds the mean over all text slots to the refiner: a change that keeps the mean shows attention alone.
    change = torch.zeros_like(first[0][0])
    change[:, 12] = tiny.rand(tiny.TEXT, seed=99)
    change[:, 13] = -change[:, 12]
    second[0][0] = second[0][0] + change
    sparse = tiny.sparse(model, top_p=0.5, floor=0.0)
    results = [tiny.sample(sparse, case, positive=positive, cfg=1.0) for positive in (first, second)]
    assert_close(*results, units=NETWORK)
    assert torch.equal(results[0], tiny.sample(model, case, positive=first, cfg=1.0))
    unmasked = [[text, {**extra, "attention_mask": None}] for text, extra in second]
    assert distance(results[0], tiny.sample(model, case, positive=unmasked, cfg=1.0)) > 1e-3
    for run in tiny.history(sparse):
        assert run.dense[reasons.MASK] == case.calls * run.forwards
        assert "mask" in run.line()


@pytest.mark.parametrize("name", ["wan animate 2", "wan autoregressive"])
def test_a_model_that_cannot_be_sparse_says_why(tiny, comfy, monkeypatch, name):
    import comfy.samplers

    case, sampler, reason = next(row for row in tiny.wan_variants.DENSE if row[0].name == name)
    # The autoregressive sampler is chosen by a node of its own and missing from this list.
    monkeypatch.setattr(comfy.samplers.KSampler, "SAMPLERS", [sampler])
    model = case.model()
    sparse = tiny.sparse(model, top_p=0.2, floor=0.0)
    assert torch.equal(tiny.sample(sparse, case, sampler=sampler), tiny.sample(model, case, sampler=sampler))
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == 0
    assert run.dense == {reason: run.forwards}


def test_other_families_stay_dense(tiny, comfy):
    """A Wan variant without a row is left alone, and the log says so."""
    import comfy.ldm.wan.model

    case = tiny.CASES[0]
    model = case.model()
    kind = type("Variant", (comfy.ldm.wan.model.WanModel,), {})
    model.model.diffusion_model.__class__ = kind
    sparse = tiny.sparse(model)
    assert torch.equal(tiny.sample(sparse, case), tiny.sample(model, case))
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == 0
    assert run.dense == {reasons.FAMILY: run.forwards}
