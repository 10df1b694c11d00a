"""Attention in plain PyTorch, in tasks and in batches, where the shapes and dtypes of the kernels end."""

import pytest
import torch

from dit_accel.kernels import block_sparse_attention as module
from dit_accel.kernels import gathered_attention, workers
from dit_accel.kernels.block_sparse_attention import block_sparse_attention
from dit_accel.tests.support.closeness import assert_close, distance

QUERIES = [[1, 70, 0, 33, 29], [50, 0, 50, 1, 32]]
KEYS = [[17, 0, 1, 16, 40, 15, 0, 44], [0, 100, 1, 1, 1, 14, 16, 0]]


@pytest.fixture(params=["tasks", "batches"])
def way(request, monkeypatch):
    """Both tried on the CPU, with several steps, parts of blocks and batches."""
    for name, value in {"ROWS": 24, "STEP": 40, "TILE": 16, "BATCH": 60_000}.items():
        monkeypatch.setattr(gathered_attention, name, value)
    if request.param == "batches":
        monkeypatch.setattr(module, "attend_in_tasks", gathered_attention.attend_in_batches)
    return request.param


@pytest.fixture(params=[True, False], ids=["bf16 products", "fp32 products"])
def multiplies_bf16(request, monkeypatch):
    """On a CPU with and without instructions for bf16; PyTorch computes the products on both."""
    monkeypatch.setattr(workers, "multiplies_bf16", lambda: request.param)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 24), (torch.float16, 2), (torch.bfloat16, 2)])
@pytest.mark.parametrize("dim", [24, 64])
def test_it_is_dense_attention_under_the_mask(make_problem, way, multiplies_bf16, dim, dtype, units, tail):
    problem = make_problem(QUERIES, KEYS, batch=2, heads=3, dim=dim, dtype=dtype, tail=tail, packed=True)
    expected, expected_lse = problem.dense()
    out, lse = problem.run(block_sparse_attention, backend="torch")
    assert out.dtype == dtype and out.transpose(1, 2).is_contiguous()
    assert_close(out, expected, units=units)
    assert_close(lse, expected_lse, units=units, dtype=dtype)
    without, none = problem.run(block_sparse_attention, backend="torch", return_lse=False)
    assert torch.equal(without, out) and none is None


@pytest.mark.parametrize("tail", [False, True])
def test_large_logits_in_16_bits(make_problem, way, tail, monkeypatch):
    """Logits of nearly a hundred, which bfloat16 rounds to halves: the weights of the largest would be wrong by a
    third."""
    monkeypatch.setattr(workers, "multiplies_bf16", lambda: True)
    problem = make_problem(QUERIES, KEYS, dtype=torch.bfloat16, tail=tail)
    problem.q *= 4
    problem.k = (problem.k[:, :, :1] * 8 + problem.k * 0.25).contiguous()  # keys alike: a few of them share the weight
    expected, _ = problem.dense()
    assert (problem.q.float() @ problem.k.float().mT * problem.scale).abs().amax() > 90
    out, _ = problem.run(block_sparse_attention, backend="torch")
    seen = problem.token_mask().any(-1)
    assert distance(out[seen], expected[seen]) < 0.02


def test_meta_tensors_have_the_shapes(make_problem):
    problem = make_problem(QUERIES, KEYS, batch=2, dim=40)
    arguments = {name: x.to("meta") for name, x in problem.plan.items()}
    q, k, v = (x.to("meta") for x in (problem.q, problem.k, problem.v))
    out, lse = block_sparse_attention(q, k, v, **arguments, scale=1.0, return_lse=True, backend="torch")
    assert out.shape == q.shape and lse.shape == q.shape[:3] and out.device.type == "meta"


def test_products_at_8_bits_are_refused(make_problem):
    from dit_accel.kernels.quantise import FP8, INT8, Formats

    problem = make_problem(QUERIES, KEYS)
    with pytest.raises(ValueError, match="torch has no products at 8 bits"):
        problem.run(block_sparse_attention, formats=Formats(INT8, FP8), backend="torch")


def test_it_needs_little_memory_beside_what_it_is_given(monkeypatch):
    """By count: keys and values of the heads at work, and logits of a task, not of the call. The custom operator is
    opened and all is done by this thread, or nothing would be counted."""
    from dit_accel.tests.support.memory import LiveMemory

    monkeypatch.setattr(module, "_blocks_op", module._attend_torch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    tokens, heads = 8192, 12
    q, k, v = (torch.randn(1, heads, tokens, 32) for _ in range(3))
    order = torch.arange(tokens, dtype=torch.int32)[None]
    offsets = torch.arange(0, tokens + 1, 128, dtype=torch.int32)[None]
    index = torch.zeros(1, heads, dtype=torch.int32)
    names, orders = ("tokens", "offsets", "index"), (order, offsets, index)
    plan = {f"{side}_{name}": x for side in ("query", "key") for name, x in zip(names, orders, strict=True)}
    keep = torch.rand(1, 1, 64, 64).expand(1, heads, -1, -1) < 0.25
    with LiveMemory(q, k, v, result=(1, tokens, heads, 32)) as memory:
        block_sparse_attention(q, k, v, **plan, keep=keep, scale=0.1, backend="torch")
    of_a_head = 2 * k.nbytes // heads
    assert memory.peak >= of_a_head, "the ordered keys and values were not seen"
    assert memory.peak <= 0.25 * 3 * q.nbytes < heads * of_a_head
