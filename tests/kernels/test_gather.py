"""Chunk layout, gathering and chunk lists: both backends against loops that follow the definitions."""

import pytest
import torch

from dit_accel.kernels import registry
from dit_accel.kernels.attention_configs import FORMATS, choose_config
from dit_accel.kernels.gather import ALIGNED, CHUNK, FILLED, LIVE_BITS, TALL, chunk_layout, chunk_lists, gather_chunks

SIZES = torch.tensor([[17, 0, 1, 16, 40, 15, 0, 44], [0, 100, 1, 1, 1, 14, 16, 0]])
OFFSETS = torch.nn.functional.pad(SIZES.cumsum(1), (1, 0)).int()
LENGTH = 133
INDEX = torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.int32)
backends = pytest.mark.parametrize("backend", ["triton", "reference"])


heights = pytest.mark.parametrize("chunk", [CHUNK, TALL])


@heights
def test_layout_covers_every_position_once_in_chunks_of_one_block(chunk):
    block, start, live = chunk_layout(OFFSETS, LENGTH, chunk)
    for order, sizes in enumerate(SIZES.tolist()):
        expected = []
        position = 0
        for number, size in enumerate(sizes):
            expected += [(number, position + i, min(chunk, size - i)) for i in range(0, size, chunk)]
            position += size
        unused = block.shape[1] - len(expected)
        assert unused >= 0
        found = list(zip(block[order].tolist(), start[order].tolist(), live[order].tolist(), strict=True))
        assert found == expected + [(-1, 0, 0)] * unused


def test_layout_has_room_for_the_worst_case():
    """Every block one row more than a multiple of the chunk wastes most."""
    offsets = torch.arange(0, 10 * (CHUNK + 1), CHUNK + 1, dtype=torch.int32)[None]
    block, _, live = chunk_layout(offsets, int(offsets[0, -1]))
    assert live.sum() == offsets[0, -1] and (block >= 0).all()


@heights
def test_layout_of_a_known_number_of_chunks(chunk):
    """No room is left over in the order that makes the most."""
    most = int((-(-SIZES // chunk)).sum(1).amax())
    exact, loose = chunk_layout(OFFSETS, LENGTH, chunk, most), chunk_layout(OFFSETS, LENGTH, chunk)
    assert (exact[0][:, -1] >= 0).any() and (loose[0][:, most:] == -1).all()
    assert all(torch.equal(found, room[:, :most]) for found, room in zip(exact, loose, strict=True))


@backends
@heights
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("packed", [False, True])
def test_gather(backend, dim, packed, chunk):
    x = torch.randn(2, LENGTH, 3, dim).transpose(1, 2) if packed else torch.randn(2, 3, LENGTH, dim)
    tokens = torch.stack([torch.randperm(LENGTH) for _ in range(2)]).int()
    block, start, live = chunk_layout(OFFSETS, LENGTH, chunk)
    out = gather_chunks(x, tokens, INDEX, start, live, chunk, backend=backend)
    expected = torch.zeros(2, 3, block.shape[1] * chunk, dim)
    for b in range(2):
        for h in range(3):
            order = int(INDEX[b, h])
            for number in range(block.shape[1]):
                for lane in range(int(live[order, number])):
                    expected[b, h, number * chunk + lane] = x[b, h, tokens[order, start[order, number] + lane]]
    assert out.is_contiguous() and torch.equal(out, expected)


@backends
@heights
def test_lists_hold_the_chunks_of_kept_blocks_in_order(backend, chunk):
    keep = torch.rand(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[0, 0, 0], keep[0, 0, 1] = False, True
    check_lists(keep, backend, chunk)


@backends
def test_lists_of_an_expanded_view(backend):
    keep = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    check_lists(keep.expand(2, 3, 5, 8), backend, CHUNK)


def check_lists(keep, backend, height):
    block, _, live = chunk_layout(OFFSETS, LENGTH, height)
    entries, counts = chunk_lists(keep, block, live, INDEX, backend=backend)
    for b, h, q in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        order = int(INDEX[b, h])
        expected = [
            (chunk << LIVE_BITS) | int(live[order, chunk])
            for chunk, owner in enumerate(block[order].tolist())
            if owner >= 0 and keep[b, h, q, owner]
        ]
        assert entries[b, h, q, : int(counts[b, h, q])].tolist() == expected
        # A step that reads beyond the end meets the last chunk again, and nothing of it is live.
        filled = -len(expected) % FILLED
        last = [expected[-1] >> LIVE_BITS << LIVE_BITS] * filled if expected else []
        assert entries[b, h, q, len(expected) : len(expected) + len(last)].tolist() == last
    assert entries.shape[3] % ALIGNED == 0 and entries.shape[3] - block.shape[1] < ALIGNED


@backends
def test_lists_longer_than_one_step_of_the_kernel(backend):
    """More chunks than the kernel looks at in one step: the running count must carry over."""
    blocks = 1100
    offsets = torch.arange(0, blocks + 1, dtype=torch.int32)[None]
    block, _, live = chunk_layout(offsets, blocks)
    keep = torch.rand(1, 1, 2, blocks, generator=torch.Generator().manual_seed(0)) < 0.5
    index = torch.zeros(1, 1, dtype=torch.int32)
    entries, counts = chunk_lists(keep, block, live, index, backend=backend)
    for q in range(2):
        chunks = entries[0, 0, q, : int(counts[0, 0, q])] >> LIVE_BITS
        assert torch.equal(chunks.long(), keep[0, 0, q].nonzero()[:, 0])


@pytest.mark.parametrize(
    "chip", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100", "gfx1201"]
)
def test_no_step_of_attention_reads_beyond_what_is_filled(chip):
    for keys, values in (None, None), *registry.nearest(FORMATS, chip):
        for dim in (64, 128):
            config = choose_config(chip, dim, keys or torch.bfloat16, values or torch.bfloat16, CHUNK)
            assert config.keys >= CHUNK and FILLED * CHUNK % config.keys == 0
