"""svg_ear: it spends what svg2 would spend, where the tail errs most."""

import torch

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import svg2, svg_ear
from dit_accel.tests.support.calls import make_call

LAYOUT = TokenLayout((12, 10, 10), prefix=5)
BUDGET = Budget(top_p=0.6, floor=0.0)


def qkv():
    """Keys and values in groups of one direction; half of the groups are tight, so that a mean says all of them."""
    random = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(2, 40, 64, generator=random)
    group = torch.randint(0, 40, (LAYOUT.total,), generator=random)
    spread = torch.where(group % 2 == 0, 0.02, 1.0)[:, None]
    k = centres[:, group] + spread * torch.randn(2, LAYOUT.total, 64, generator=random)
    v = centres[:, group] + spread * 3 * torch.randn(2, LAYOUT.total, 64, generator=random)
    q = centres[:, group] + 0.5 * torch.randn(2, LAYOUT.total, 64, generator=random)
    return 0.7 * q[None], 0.7 * k[None], v[None]


def kept_tokens(plan):
    return (plan.keep[:, :, 1:, 1:].long() * plan.keys.sizes()[:, :, None, 1:]).sum(-1)


def test_each_row_spends_what_svg2_would():
    reference, plan = (planner.plan(make_call(*qkv(), LAYOUT), BUDGET) for planner in (svg2, svg_ear))
    assert torch.equal(plan.keys.tokens, reference.keys.tokens), "the clusters are svg2's"
    allowed, spent = kept_tokens(reference), kept_tokens(plan)
    largest = plan.keys.sizes()[:, :, 1:].max()
    assert (spent > allowed - largest).all()
    # The single best block is kept even where it alone is more than svg2's choice.
    several = plan.keep[:, :, 1:, 1:].sum(-1) > 1
    assert (spent[several] <= allowed[several]).all()
    assert not torch.equal(plan.keep, reference.keep)


def test_the_tail_and_the_routing_both_pay():
    q, k, v = qkv()
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    by_mass = svg2.plan(make_call(q, k, v, LAYOUT), BUDGET)
    by_error = svg_ear.plan(make_call(q, k, v, LAYOUT), BUDGET)

    def error(keep, tail):
        plan = type(by_mass)(by_mass.queries, by_mass.keys, keep, tail=tail)
        out = executor.execute(q, k, v, plan, scale=q.shape[-1] ** -0.5, backend="reference")
        return ((out - dense).norm() / dense.norm()).item()

    plain, tail, routed = (
        error(by_mass.keep, None),
        error(by_mass.keep, by_error.tail),
        error(by_error.keep, by_error.tail),
    )
    assert routed < tail < plain
    assert error(by_error.keep, None) > plain, "routing by error is for a plan with a tail"


def test_a_block_whose_mean_says_all_is_not_kept():
    """Tight groups are left to the tail: what is kept is the others, whatever mass they hold."""
    q, k, v = qkv()
    plan = svg_ear.plan(make_call(q, k, v, LAYOUT), BUDGET)
    by_mass = svg2.plan(make_call(q, k, v, LAYOUT), BUDGET)
    block = plan.keys.block_of_token()[:, :, :, None].expand(v.shape)
    members = torch.zeros(1, 2, plan.keys.blocks, 64)
    squares = members.scatter_add(2, block, v.square()).sum(-1) / plan.keys.sizes().clamp(min=1)
    spread = (squares - plan.tail.values.square().sum(-1)).clamp(min=0)

    def mean_spread(keep):
        kept = keep[:, :, 1:, 1:].float() * plan.keys.sizes()[:, :, None, 1:]
        return (kept * spread[:, :, None, 1:]).sum() / kept.sum()

    assert mean_spread(plan.keep) > 1.02 * mean_spread(by_mass.keep)
