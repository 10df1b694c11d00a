"""The roofline page: what the generator prints, and amounts that follow from the sizes alone."""

from pathlib import Path

import pytest

from dit_accel.accel.attention.cost.costs import Size, dense_work, plan_work, predicted_costs
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.kernels.axis_tree import tree_depth
from dit_accel.tests.bench import roofline

PAGE = Path(__file__).parents[2] / "kernels" / "ROOFLINE.md"
MODELS = {model.name: model for model in roofline.MODELS}
WAN = MODELS["Wan 2.1 14B, 720p, 81 frames"]
H200, RTX_4090, _ = roofline.PEAKS


def test_the_page_is_what_the_generator_prints():
    assert PAGE.read_text("utf-8") == roofline.page()


def test_the_readme_links_to_it():
    assert "(kernels/ROOFLINE.md)" in (PAGE.parents[1] / "README.md").read_text("utf-8")


def test_every_card_has_a_table_of_every_kernel_and_model():
    page = roofline.page()
    for peaks in roofline.PEAKS:
        section = page.split(f"### {peaks.card.name}\n")[1].split("###")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        assert len(rows) == 2 + len(roofline.kernels(WAN)) + len(roofline.CALLS)
        assert all(line.count("|") == 2 + len(roofline.MODELS) for line in rows)


@pytest.mark.parametrize(
    ("name", "tokens", "heads", "dense"), [(0, 75_600, 40, 117.1), (1, 32_760, 40, 22.0), (2, 119_056, 24, 174.2)]
)
def test_the_sizes_are_the_published_ones(name, tokens, heads, dense):
    model = roofline.MODELS[name]
    assert (model.tokens, model.heads) == (tokens, heads)
    assert roofline.kernels(model)["dense attention"].matrix == pytest.approx(dense, rel=0.005)


@pytest.mark.parametrize("model", MODELS)
def test_page_and_gate_count_the_same_work(model):
    model = MODELS[model]
    work = roofline.kernels(model)
    size = Size(model.heads, model.tokens, model.video, roofline.DIM)
    assert work["dense attention"].matrix == pytest.approx(dense_work(size).dense)
    one_round = plan_work(size, PATTERNS["svg2"].planning, 1)
    assert work["k-means assign, Q and K, a round"].half == pytest.approx(one_round.assign)
    assert work["compensation error"].half == pytest.approx(
        plan_work(size, PATTERNS["svg_ear"].planning, 0).assign, rel=1e-9
    )
    assert work["axis trees, Q and K"].half == pytest.approx(plan_work(size, PATTERNS["tree"].planning, 0).assign)
    expected = work["dense attention"].bounds(RTX_4090, at_peak=False)["matrix"]
    assert expected == pytest.approx(dense_work(size).milliseconds(predicted_costs("sm_89")), rel=1e-6)


def test_attention_by_hand():
    work = roofline.kernels(WAN)
    sixteen, eight = work["sparse attention, 16 bits"], work["sparse attention, INT8 and FP8"]
    # 117.06 TFLOP x density 0.3 x (1 + 64 * 295 / 75600) x (1 + 8 * 994 / 75600)
    assert sixteen.half == pytest.approx(117.06 * 0.3 * 1.2497 * 1.1052, rel=0.001)
    assert eight.matrix == pytest.approx(sixteen.matrix)
    assert roofline.milliseconds(sixteen, H200, at_peak=True) == pytest.approx(1e3 * sixteen.half / 989.4)
    assert roofline.milliseconds(eight, RTX_4090, at_peak=True) == pytest.approx(
        1e3 * sixteen.half / 2 * (1 / 660.6 + 1 / 330.3)
    )
    # K and V at 774 MB: read, and written with 8 rows more for each of 994 clusters; 12 MB of token numbers for each.
    gather = work["gather, K and V"]
    assert gather.bytes == pytest.approx(2 * 0.7741 * (1 + 1.1052) + 2 * 0.0121, rel=0.001)
    assert roofline.milliseconds(gather, H200, at_peak=True) == pytest.approx(gather.bytes / 4.8)


def test_trees_by_hand():
    work = roofline.kernels(WAN)
    # 591 and 1182 leaves: 10 and 11 levels, in the first eight of which a node looks at 512 of its tokens.
    assert (tree_depth(591), tree_depth(1182)) == (10, 11)
    sampled = 2 * 512 * (2**8 - 1) + 5 * 75_600
    assert work["axis trees, Q and K"].half == pytest.approx(2e-12 * 40 * sampled * 128**2)
    # Full blocks: 117.06 TFLOP x (density 0.3, and a mean for each 64 keys of the rest).
    full = work["sparse attention, full blocks, 16 bits"]
    assert full.half == pytest.approx(117.06 * (0.3 + 0.7 / 64), rel=0.001)
    assert work["sparse attention, full blocks, INT8 and FP8"].matrix == pytest.approx(full.half)
    # Far less is multiplied than with clusters, and trees cost less than a round of k-means.
    assert full.half < 0.77 * work["sparse attention, 16 bits"].half
    assert work["axis trees, Q and K"].half < work["k-means assign, Q and K, a round"].half


def test_linear_attention_by_hand():
    """512 x 512 tokens of 32 heads, 32 numbers each: 268 million of keys, as many of values, queries and results."""
    work = roofline.linear_attention(4096)
    sums, results, plain = work.values()
    assert sums.half == pytest.approx(512**2 * 32 * 2 * 32**2 / 1e12)
    assert results.half == pytest.approx(6 * sums.half)
    # 1.0737 GB of two tensors; the sums of 1024 tokens are written and read again: 33 x 32 numbers of fp32.
    assert results.bytes == pytest.approx(1.0737, rel=1e-4)
    assert sums.bytes == pytest.approx(1.0737 * (1 + 2 * 33 * 32 * 4 / (1024 * 128)), rel=1e-4)
    # To fp32, three tensors: 18; relu of two 16; a row of ones 8; products 8 and 8; division 8; back 6.
    assert plain.bytes == pytest.approx(1.0737 / 4 * (18 + 16 + 8 + 8 + 8 + 8 + 6), rel=1e-4)
    assert roofline.linear_attention(1024)["results"].bytes == pytest.approx(results.bytes / 16)


@pytest.mark.parametrize("peaks", roofline.PEAKS, ids=lambda peaks: peaks.card.name)
def test_expected_is_never_faster_than_the_peak_and_names_its_unit(peaks):
    for model in roofline.MODELS:
        for name, work in roofline.kernels(model).items():
            at_peak, expected = (roofline.milliseconds(work, peaks, at_peak=at) for at in (True, False))
            assert 0 < at_peak < expected, name
            unit = max((bounds := work.bounds(peaks, at_peak=False)), key=bounds.get)
            assert unit == {"gather, K and V": "memory", "map selection": "vector"}.get(name, unit)
            assert name not in ("dense attention", "sparse attention, 16 bits") or unit == "matrix"
