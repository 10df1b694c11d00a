"""Block numbers for models that give none."""

import pytest
import torch

from dit_accel.accel.comfy.sparse.numbering import LEAVE_OUT, WITHOUT_ATTENTION, number_blocks

BLOCKS = 3


@torch.compiler.disable
def override(x):
    return 2 * x


def attention(x, transformer_options):
    if transformer_options.get(LEAVE_OUT):
        return x
    return override(x)


def network(x, transformer_options):
    """Stands in for LTX-2: each block is run by its replacement, if there is one."""
    for i in range(BLOCKS):
        options = transformer_options
        if i in transformer_options.get(WITHOUT_ATTENTION, ()):
            options = {**options, LEAVE_OUT: True}

        def block(args):
            return {"img": attention(args["img"], args["transformer_options"])}

        replacement = transformer_options.get("patches_replace", {}).get("dit", {}).get(("double_block", i))
        args = {"img": x, "transformer_options": options}
        x = (block(args) if replacement is None else replacement(args, {"original_block": block}))["img"]
    return x


@pytest.fixture
def compiled():
    """The network as ComfyUI compiles it: without guards on transformer_options."""

    def guards(entries):
        return ["transformer_options" not in entry.name for entry in entries]

    torch._dynamo.reset()
    yield torch.compile(network, backend="eager", options={"guard_filter_fn": guards})
    torch._dynamo.reset()


@pytest.mark.parametrize("left_out", range(BLOCKS))
def test_blocks_without_attention_share_no_graph_with_the_others(compiled, left_out):
    for told in ({}, {WITHOUT_ATTENTION: {left_out}}, {}, {WITHOUT_ATTENTION: {left_out}}):
        out = compiled(torch.ones(1), number_blocks(told, BLOCKS))
        assert out.item() == 2 ** (BLOCKS - len(told))


def test_a_replacement_of_the_block_goes_on_with_it(compiled):
    def replacement(args, extra):
        return {"img": extra["original_block"](args)["img"] + args["transformer_options"]["block_index"]}

    options = {"patches_replace": {"dit": {("double_block", 2): replacement}}}
    for told, expected in (({}, 8 + 2), ({WITHOUT_ATTENTION: {2}}, 4 + 2)):
        out = compiled(torch.ones(1), number_blocks({**options, **told}, BLOCKS))
        assert out.item() == expected
