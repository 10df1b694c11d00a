"""Block numbers for models that give none, in the forwards where counting attention calls would go wrong."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

# LTX-2's spatio-temporal guidance: the blocks whose self-attention is left out, and what each of them is told.
WITHOUT_ATTENTION = "stg_self_attn_blocks"
LEAVE_OUT = "stg_skip_self_attn"


def places_move(options: Mapping[str, Any]) -> bool:
    """Another node replaces blocks, as layer skipping does, or leaves out their attention: a call's place in the
    forward is then not its block."""
    return bool(options.get("patches_replace", {}).get("dit") or options.get(WITHOUT_ATTENTION))


def number_blocks(options: Mapping[str, Any], blocks: int) -> dict[str, Any]:
    """transformer_options in which each of `blocks` blocks finds its number, as most models give it themselves. The
    number is handed on by a replacement of the block, which then does what was there before."""
    replacements = options.get("patches_replace", {})
    replaced = replacements.get("dit", {})
    keys = [("double_block", i) for i in range(blocks)]
    numbered = {key: functools.partial(_uncompiled_number(), key[1], replaced.get(key)) for key in keys}
    return {**options, "patches_replace": {**replacements, "dit": {**replaced, **numbered}}}


def _number(index: int, replacement, args, extra):
    options = args["transformer_options"]
    options["block_index"] = index
    if options.get(LEAVE_OUT):
        # torch.compile has dropped its guards on transformer_options: what it compiles here would run in the other
        # blocks too, and what it compiled for those here.
        original = torch.compiler.disable(extra["original_block"])
        extra = {**extra, "original_block": original}
    return extra["original_block"](args) if replacement is None else replacement(args, extra)


@functools.cache
def _uncompiled_number():
    """Not traced itself, but what it calls is. Built on first use: torch._dynamo is heavy to import."""
    return torch.compiler.disable(_number, recursive=False)
