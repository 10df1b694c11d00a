"""Shapes and memory of the references, and the promises of the custom operators."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel.kernels import gather, kmeans, rowwise  # noqa: F401 - registers its operators
from dit_accel.kernels.axis_tree import tree_order
from dit_accel.kernels.block_mean import block_mean
from dit_accel.kernels.block_sparse_attention import block_sparse_attention
from dit_accel.kernels.group import group
from dit_accel.kernels.quantise import FP8, INT8, key_shift
from dit_accel.kernels.row_attention import row_attention
from dit_accel.kernels.top_p import select_blocks
from dit_accel.kernels.unpack_w4 import INT4
from dit_accel.tests.support.memory import LiveMemory


@pytest.mark.parametrize("return_lse", [True, False])
def test_the_reference_has_static_shapes_and_no_square_tensor(return_lse):
    tokens, heads = 20_000, 1
    with FakeTensorMode():
        q, k, v = (torch.empty(1, heads, tokens, 128, dtype=torch.bfloat16) for _ in range(3))
        order = torch.empty(heads, tokens, dtype=torch.int32)
        offsets = {blocks: torch.empty(heads, blocks + 1, dtype=torch.int32) for blocks in (300, 1000)}
        index = torch.zeros(1, heads, dtype=torch.int32)
        with LiveMemory(q, k, v) as memory:
            out, lse = block_sparse_attention(
                q,
                k,
                v,
                query_tokens=order,
                query_offsets=offsets[300],
                query_index=index,
                key_tokens=order,
                key_offsets=offsets[1000],
                key_index=index,
                keep=torch.empty(1, heads, 300, 1000, dtype=torch.bool),
                scale=0.1,
                return_lse=return_lse,
                backend="reference",
            )
            centroids = q[:, :, :1000]
            group(kmeans.assign(q, centroids, backend="reference"), 1000, backend="reference")
            leaves = tree_order(q, torch.empty(1, heads, 128, 128), 1024, backend="reference")
            block_mean(q, order, offsets[1000], index, empty=centroids, backend="reference")
            scores, sizes = torch.empty(1, heads, 300, 1000), offsets[1000][None].diff(dim=-1)
            select_blocks(scores, sizes, top_p=0.9, floor=0, max_density=1, backend="reference")
            row_attention(q[:, :, :64], k, v, scale=0.1, backend="reference")
    assert out.shape == q.shape and leaves.shape == (1, heads, tokens)
    assert (lse is not None) == return_lse
    assert memory.peak < tokens**2 * 4


def calls_of_linears():
    """Arguments of the operators of quantised linears, with every optional tensor and with none."""
    codes, scale, smooth = torch.randint(-128, 128, (5, 64), dtype=torch.int8), torch.rand(2, 5), torch.rand(128) + 1
    sums, steps = torch.randint(-99, 99, (5, 7), dtype=torch.int32), torch.rand(7)
    return {
        "unpack_w4": (codes, scale, INT4, None, None, None, torch.float16),
        "unpack_w4 with all": (codes, scale, INT4, scale, steps[:5], smooth, torch.float16),
        "quantise_rows": (torch.randn(3, 128), None, INT8),
        "quantise_rows smoothed": (torch.randn(3, 128), smooth, INT8),
        "scale_sums": (sums, steps[:5], steps, None, torch.float16),
        "scale_sums with a bias": (sums, steps[:5], steps, steps, torch.float16),
    }


def test_custom_ops_keep_their_promises(make_problem):
    """Schema and fake implementation against the real kernels: shapes, dtypes, strides, no aliasing."""
    problem = make_problem([[9, 0, 24]], [[17, 0, 16]], density=0.7, packed=True)
    plan, ops = problem.plan, torch.ops.dit_accel
    block, start, live = gather.chunk_layout(plan["key_offsets"], 33)
    lists = (plan["keep"], block, live, plan["key_index"])
    entries, counts = ops.chunk_lists(*lists)
    keys, values = (
        ops.gather_chunks(x, plan["key_tokens"], plan["key_index"], start, live, gather.CHUNK)
        for x in (problem.k, problem.v)
    )
    queries = plan["query_tokens"], plan["query_offsets"], plan["query_index"]
    tokens = problem.q[:, :, :4].contiguous()
    offsets = torch.tensor([[0, 9, 9, 20, 33]], dtype=torch.int32)
    order = torch.arange(33)[None], offsets, torch.zeros(1, 2, dtype=torch.int32)
    pooled = plan["keep"], *problem.pool()
    chunks = plan["key_tokens"], plan["key_index"], start, live, gather.CHUNK
    shift = key_shift(problem.k)
    rounded = {values: (problem.k, problem.v, *chunks, shift, shift, INT8, values) for values in (FP8, None)}
    sizes = offsets.diff(dim=1)[None].expand(1, 2, -1)
    selection = torch.rand(1, 2, 3, 4), sizes, 0.9, 1, torch.full((1, 2, 3), 20.0)
    keys_8, steps, values_16 = ops.quantise_chunks(*rounded[None])
    calls = {
        "quantise_chunks": rounded[FP8],
        "quantise_chunks with 16-bit values": rounded[None],
        "attend_chunks at 8 bits": (
            *(problem.q, keys_8, values_16, *queries, entries, counts),
            *(None, None, None, None, steps, None, None),
        ),
        "chunk_lists": lists,
        "gather_chunks": (problem.k, *chunks),
        "attend_chunks": (problem.q, keys, values, *queries, entries, counts),
        "attend_chunks with a tail": (problem.q, keys, values, *queries, entries, counts, *pooled),
        "kmeans_assign": (problem.q, tokens, tokens.square().sum(-1) / 2),
        "tree_order": (problem.q, torch.eye(64).repeat(1, 2, 1, 1), 16),
        "tree_order of one leaf": (problem.q, torch.eye(64).repeat(1, 2, 1, 1), 64),
        "group": (torch.randint(4, (1, 2, 33), dtype=torch.int32), 4),
        "block_mean": (problem.q, *order, tokens),
        "select_blocks": selection,
        "select_blocks by head": (*selection, torch.rand(2)),
        "row_attention": (problem.q[:, :, 3:20:2], problem.k, problem.v, 0.1),
    }
    calls |= calls_of_linears()
    for name, arguments in calls.items():
        op = getattr(ops, name.split()[0]).default
        options = {"chunk": gather.CHUNK, "scale": 0.1, "return_lse": True} if name.startswith("attend_chunks") else {}
        torch.library.opcheck(op, arguments, options, test_utils=("test_schema", "test_faketensor"))
