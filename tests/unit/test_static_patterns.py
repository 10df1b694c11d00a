"""Blocks of the grid, and the maps of window and radial."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners.blocks import (
    VideoBlocks,
    block_order,
    block_sizes,
    coordinates,
    cubes,
    cut,
    morton,
    ordered_blocks,
)
from dit_accel.accel.attention.planners.radial import radial_map
from dit_accel.accel.attention.planners.static import overlap
from dit_accel.accel.attention.planners.window import window_map

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(GRIDS, st.sampled_from(["raster", "cube", "morton", "auto"]), st.sampled_from([16, 64, 128]))
def test_blocks_hold_every_token_once_and_stay_small(grid, token_order, size):
    blocks = ordered_blocks(grid, token_order, size)
    assert torch.equal(blocks.tokens.sort().values, torch.arange(math.prod(grid)))
    assert blocks.offsets[0] == 0 and blocks.offsets[-1] == math.prod(grid)
    assert blocks.sizes().min() >= 1 and blocks.sizes().max() <= size


@settings(max_examples=40, deadline=None)
@given(GRIDS)
def test_a_cube_is_a_box(grid):
    blocks = cubes(grid, 64)
    place = coordinates(grid)
    for tokens in blocks.tokens.split(blocks.sizes().tolist()):
        inside = place[tokens]
        extent = inside.amax(0) - inside.amin(0) + 1
        assert extent.prod() == len(tokens)


def test_a_cube_is_cubic_where_the_grid_allows():
    blocks = cubes((8, 8, 8), 64)
    extents = coordinates((8, 8, 8))[blocks.tokens].view(8, 64, 3).amax(1) - coordinates((8, 8, 8))[blocks.tokens].view(
        8, 64, 3
    ).amin(1)
    assert (extents == 3).all()
    assert cubes((1, 16, 16), 64).sizes().tolist() == [64] * 4


def test_morton_order_visits_octants_one_after_the_other():
    place = coordinates((4, 4, 4))[morton((4, 4, 4))]
    for octant in place.split(8):
        assert ((octant.amax(0) - octant.amin(0)) == 1).all()


def test_means_of_blocks():
    blocks = cut(torch.tensor([4, 2, 0, 1, 3]), 2)
    assert blocks.sizes().tolist() == [1, 2, 2]
    assert blocks.means(torch.arange(5.0)).tolist() == [4, 1, 2]
    assert blocks.block_of_token().tolist() == [1, 2, 1, 2, 0]


@pytest.mark.parametrize(
    ("tokens", "expected"), [(75_600, (128, 64)), (1536, (128, 64)), (1535, (64, 32)), (385, (32, 16)), (3, (32, 16))]
)
def test_block_sizes(tokens, expected):
    assert block_sizes(tokens) == expected


def tall(grid, token_order, prefix=0):
    layout = TokenLayout(grid, prefix=prefix)
    blocks = [ordered_blocks(grid, token_order, block_sizes(layout.video)[1])]
    return block_order(layout, blocks, torch.zeros(1, 1, dtype=torch.int32))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from(["raster", "cube", "morton"]),
    st.integers(0, 100),
)
def test_tall_chunks_hold_every_token_and_little_else(grid, token_order, prefix):
    order = tall(grid, token_order, prefix)
    sizes = order.offsets.diff(dim=1)[0].tolist()
    chunks, small = (sum(math.ceil(size / rows) for size in sizes) for rows in (64, 16))
    if order.tall_chunks is None:
        assert chunks * 64 > 1.05 * small * 16
    else:
        assert order.tall_chunks == chunks and chunks * 64 <= 1.05 * small * 16


@pytest.mark.parametrize(
    ("grid", "token_order", "fits"),
    [
        ((21, 45, 80), "raster", True),
        ((21, 45, 80), "morton", True),
        ((16, 20, 20), "cube", True),
        # Boxes of 3 x 4 x 4 and less between those of 64 tokens.
        ((21, 45, 80), "cube", False),
        # A short video has blocks of 16 tokens.
        ((3, 8, 8), "raster", False),
    ],
)
def test_which_orders_are_cut_into_tall_chunks(grid, token_order, fits):
    assert (tall(grid, token_order).tall_chunks is not None) == fits


def test_tall_chunks_are_as_many_as_any_of_the_orders_makes():
    layout, tokens, index = TokenLayout((1, 8, 256)), torch.arange(2048), torch.zeros(1, 1, dtype=torch.int32)
    even = cut(tokens, 64)
    uneven = VideoBlocks(tokens, even.offsets - (torch.arange(33) == 1).long())  # 63 and 65 tokens
    assert block_order(layout, [even], index).tall_chunks == 32
    assert block_order(layout, [even, uneven], index).tall_chunks == 33


@pytest.mark.parametrize("grid", [(21, 30, 52), (5, 7, 11), (9, 8, 8)], ids=str)
@pytest.mark.parametrize("target", [0.1, 0.3, 0.6])
def test_a_window_is_near_and_of_one_size(grid, target):
    made = window_map(grid, "cube", target)
    seen = made.keep.double() @ made.keys.sizes().double() / math.prod(grid)
    assert seen.max() <= max(target, 2.5 * made.keys.sizes().max() / math.prod(grid))
    assert seen.min() >= seen.max() - 2 * made.keys.sizes().max() / math.prod(grid)
    # Nothing that is kept is further than what is left out, but for the blocks of the query's own tokens.
    place = (coordinates(grid) + 0.5) / torch.tensor(grid)
    radius = target ** (1 / 3) / 2
    centres = made.queries.means(place).clamp(radius, 1 - radius)
    apart = (centres[:, None] - made.keys.means(place)).abs().amax(-1)
    others = made.keep & ~overlap(made.queries, made.keys)
    assert (apart.where(others, 0).amax(1) <= apart.where(~made.keep, 2).amin(1) + 0.1).all()


def test_a_window_at_the_border_moves_inside():
    made = window_map((8, 32, 32), "cube", 0.2)
    place = (coordinates((8, 32, 32)) + 0.5) / torch.tensor([8, 32, 32])
    corner = made.queries.means(place).norm(dim=1).argmin()
    kept = made.keys.means(place)[made.keep[corner]]
    radius = 0.2 ** (1 / 3) / 2
    assert kept.mean(0) == pytest.approx(torch.full((3,), radius), abs=0.12)


@pytest.mark.parametrize("grid", [(9, 30, 52), (1, 64, 96)], ids=str)
def test_a_window_holds_the_neighbours(grid):
    """Also at borders and corners, and on a single frame: the six nearest blocks of every query block are kept."""
    made = window_map(grid, "cube", 0.3)
    place = coordinates(grid) / torch.tensor(grid)
    apart = torch.cdist(made.queries.means(place), made.keys.means(place))
    near = apart.argsort(dim=1)[:, :6]
    assert made.keep.gather(1, near).all(1).float().mean() > 0.97


def test_radial_always_sees_its_own_tokens():
    for grid, target in (((12, 24, 40), 0.1), ((5, 7, 11), 0.05)):
        made = radial_map(grid, target)
        assert made.keep[overlap(made.queries, made.keys)].all()


def test_radial_keeps_less_with_distance_and_the_first_frame():
    frames, tokens = 21, 30 * 52
    made = radial_map((frames, 30, 52), 0.3)
    assert 0.25 < made.density() <= 0.3
    query_frame, key_frame = (
        torch.div(b.offsets[:-1], tokens, rounding_mode="floor") for b in (made.queries, made.keys)
    )
    assert made.keep[:, key_frame == 0].all()
    by_distance = []
    for distance in range(frames - 1):
        pairs = (query_frame[:, None] - key_frame).abs() == distance
        pairs &= (key_frame > 0)[None]
        by_distance.append(made.keep[pairs].float().mean().item())
    assert by_distance[0] == by_distance[1] == 1
    octaves = [by_distance[2:4], by_distance[4:8], by_distance[8:16], by_distance[16:]]
    means = [sum(part) / len(part) for part in octaves]
    assert means == sorted(means, reverse=True) and means[0] > 2 * means[-1] > 0


def test_radial_skips_frames_where_its_window_is_smaller_than_a_block():
    frames, tokens = 21, 30 * 52
    made = radial_map((frames, 30, 52), 0.2)
    last = made.queries.offsets[:-1] // tokens == frames - 1
    seen = {int(frame) for frame in (made.keys.offsets[:-1] // tokens)[made.keep[last].any(0)]}
    assert {0, frames - 2, frames - 1} <= seen
    gaps = [after - before for before, after in pairwise(sorted(seen - {0}))]
    assert gaps[0] > 1 == gaps[-1] and gaps == sorted(gaps, reverse=True), gaps


def test_radial_blocks_never_cross_a_frame():
    made = radial_map((5, 7, 11), 0.5)
    for blocks in (made.queries, made.keys):
        for tokens in blocks.tokens.split(blocks.sizes().tolist()):
            assert len((tokens // 77).unique()) == 1
