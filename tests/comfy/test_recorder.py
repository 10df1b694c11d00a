"""The recorder on every family: it sees each video self-attention call of a forward once, and changes nothing."""

import pytest
import torch

from dit_accel.accel.comfy.sparse.override import OVERRIDE_KEY
from dit_accel.accel.headless.attention_inputs import Recorder
from dit_accel.tests.comfy.test_families import NAMES


@pytest.fixture(scope="module", params=range(len(NAMES)), ids=NAMES)
def case(tiny, request):
    return tiny.CASES[request.param]


def test_it_sees_every_call_of_the_last_forward(tiny, case, model):
    recorder = Recorder()
    recorded = tiny.sample(recorder.attach(model), case, steps=1)
    assert torch.equal(recorded, tiny.sample(model, case, steps=1))
    assert len(recorder.calls) == case.calls
    assert recorder.layout.extra == case.extra
    for _, q, k, v in recorder.calls:
        assert q.shape == k.shape == v.shape
        assert q.shape[2] == recorder.layout.total and q.shape[3] in (64, 128)
        assert q.dtype == torch.float16


def test_an_override_that_was_there_still_acts(tiny):
    def doubled(func, *args, **kwargs):
        return 2 * func(*args, **kwargs)

    case = tiny.CASES[0]
    model = case.model()
    changed = model.clone()
    changed.model_options["transformer_options"][OVERRIDE_KEY] = doubled
    expected = tiny.sample(changed, case, steps=1)
    assert not torch.equal(expected, tiny.sample(model, case, steps=1))
    recorder = Recorder()
    assert torch.equal(tiny.sample(recorder.attach(changed), case, steps=1), expected)
    assert len(recorder.calls) == case.calls


def test_a_model_of_no_known_family_is_refused(tiny):
    model = tiny.CASES[0].model()
    model.model.diffusion_model.__class__ = type("Variant", (type(model.model.diffusion_model),), {})
    with pytest.raises(ValueError, match="expected one of a known family, found Variant"):
        Recorder().attach(model)
