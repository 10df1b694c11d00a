"""ComfyUI's guidance nodes on the same model: extra evaluations, skipped blocks, patched attention outputs."""

import functools
from dataclasses import dataclass

import pytest

from dit_accel.accel.attention import reasons
from dit_accel.tests.support.closeness import NETWORK, assert_close, distance


def skip_layers(model, double="", single=""):
    """One more evaluation of the positive prompt each step, without these blocks."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    return SkipLayerGuidanceDiT.execute(model, 1.0, 0.0, 1.0, double, single).result[0]


def skip_layers_of_negative(model, double="", single=""):
    """The two prompts apart, the negative one without these blocks."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple

    return SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, double, single).result[0]


def zero_star(model):
    from comfy_extras.nodes_cfg import CFGZeroStar

    return CFGZeroStar.execute(model).result[0]


def norm(model):
    from comfy_extras.nodes_cfg import CFGNorm

    return CFGNorm.execute(model, 1.0).result[0]


def normalized_attention(model):
    from comfy_extras.nodes_nag import NAGuidance

    return NAGuidance.execute(model, 2.0, 0.5, 1.5).result[0]


def spatio_temporal(model, blocks):
    """One more evaluation each step in which these blocks pass the values through instead of attending."""
    from comfy_extras.nodes_lt import LTXVSpatioTemporalGuidance

    return LTXVSpatioTemporalGuidance.execute(model, 1.0, blocks, 0.0, 1.0).result[0]


def modality(model):
    """One more evaluation each step without the attention between video and audio."""
    from comfy_extras.nodes_lt import LTXVModalityGuidance

    return LTXVModalityGuidance.execute(model, 2.0, 0.0, 1.0).result[0]


@dataclass(frozen=True)
class Stack:
    """A guidance node on a model: evaluations a step, how often they call each block, and calls that are missing."""

    case: str
    node: object
    forwards: int
    calls: dict[int, int]
    missing: int = 0

    def __str__(self):
        return f"{self.case} {getattr(self.node, 'func', self.node).__name__}"


WITHOUT_FIRST = functools.partial(skip_layers, double="0")
STACKS = [
    Stack("wan t2v", WITHOUT_FIRST, 2, {0: 1, 1: 2}, missing=1),
    Stack("wan t2v", functools.partial(skip_layers_of_negative, double="0"), 2, {0: 1, 1: 2}, missing=1),
    Stack("wan t2v", zero_star, 1, {0: 1, 1: 1}),
    Stack("wan t2v", norm, 1, {0: 1, 1: 1}),
    Stack("wan t2v", normalized_attention, 1, {0: 1, 1: 1}),
    Stack("hunyuan 1", functools.partial(skip_layers, double="0", single="1"), 2, {0: 1, 1: 2, 2: 1}, missing=2),
    Stack("hunyuan 1", normalized_attention, 1, {0: 1, 1: 1, 2: 1}),
    Stack("kandinsky 5 lite", WITHOUT_FIRST, 2, {0: 1, 1: 2, 2: 2}, missing=1),
    Stack("mochi", WITHOUT_FIRST, 2, {0: 1, 1: 2}, missing=1),
    Stack("minimax h3", WITHOUT_FIRST, 3, {0: 2, 1: 3}, missing=1),  # core evaluates its prompts apart
    Stack("ltx video", WITHOUT_FIRST, 2, {0: 1, 1: 2}, missing=1),
    Stack("ltx 2", functools.partial(spatio_temporal, blocks="0"), 2, {0: 1, 1: 2}, missing=1),
    Stack("ltx 2", modality, 2, {0: 2, 1: 2}),
]


@pytest.fixture(scope="module")
def models():
    """Models of this module by the name of their case."""
    return {}


@pytest.fixture(params=STACKS, ids=str)
def stack(request):
    return request.param


@pytest.fixture
def stacked(tiny, models, stack):
    """The stack's case, and its model under our node and the other one in an order, with a budget or without ours."""
    case = next(case for case in tiny.CASES if case.name == stack.case)
    if case.name not in models:
        models[case.name] = case.model()

    def build(order, **budget):
        steps = {"ours": lambda model: tiny.sparse(model, **budget), "theirs": stack.node}
        return functools.reduce(lambda model, step: steps[step](model), order, models[case.name])

    return case, build


ORDERS = [("ours", "theirs"), ("theirs", "ours")]


def test_density_one_equals_the_node_alone(tiny, stack, stacked):
    case, build = stacked
    alone = tiny.sample(build(["theirs"]), case, cfg=2.0, steps=1)
    for order in ORDERS:
        both = build(order)
        assert_close(tiny.sample(both, case, cfg=2.0, steps=1), alone, units=NETWORK)
        (run,) = tiny.history(both)
        assert run.forwards == stack.forwards
        assert run.sparse_calls == sum(stack.calls.values())
        assert run.expected - run.sparse_calls == stack.missing
        said = f"only {run.sparse_calls} of {run.expected} video self-attention calls came by"
        assert [said in note for note in run.notes] == ([True] if stack.missing else [])


def test_every_block_is_known_by_its_number(tiny, stack, stacked):
    """Not by its place among the calls, which moves when a block is skipped."""
    case, build = stacked
    for block, calls in stack.calls.items():
        both = build(ORDERS[block % 2], top_p=0.5, floor=0.0, dense_blocks=frozenset({block}))
        tiny.sample(both, case, cfg=2.0, steps=1)
        (run,) = tiny.history(both)
        assert run.dense[reasons.DENSE_BLOCK] == calls
        assert run.sparse_calls == (sum(stack.calls.values()) - calls)
        assert run.density < 0.95


def test_normalized_attention_guidance_acts_in_hunyuan_alone(tiny, models):
    """Of the video models only HunyuanVideo's blocks have its place in core."""
    for name, acts in (("wan t2v", False), ("hunyuan 1", True)):
        case = next(case for case in tiny.CASES if case.name == name)
        model = models.setdefault(name, case.model())
        found, plain = (tiny.sample(each, case) for each in (normalized_attention(model), model))
        assert (distance(found, plain) > 1e-3) == acts
