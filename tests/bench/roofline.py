"""What each kernel has to do at the sizes of real models, and what that takes at least: kernels/ROOFLINE.md.

`python -m dit_accel.tests.bench roofline > kernels/ROOFLINE.md` writes the page anew. Nothing in it was measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dit_accel.accel.attention.cost.cards import H200, RTX_4090, RTX_5090, Card
from dit_accel.accel.attention.cost.costs import BANDWIDTH_EFFICIENCY, SPARSE_EFFICIENCY, tree_samples
from dit_accel.accel.attention.planners.clusters import WARM_ITERATIONS
from dit_accel.accel.attention.planners.planning import Planning
from dit_accel.kernels.attention_configs import QUERY_TILE
from dit_accel.kernels.axis_tree import ROUNDS, tree_depth
from dit_accel.kernels.gather import CHUNK, TALL
from dit_accel.kernels.quantise import SHIFT_STRIDE
from dit_accel.kernels.relu_linear_attention import PART

DIM = 128
DENSITY = 0.3
CLUSTERS = Planning(clusters=True)
LEAVES = Planning(trees=True)
OTHER_EFFICIENCY = 0.5  # of vector and exponential units
# Vector operations for one entry: three searches (mass, rank, cap) of 31 halvings, each a comparison, a choice and a
# sum; a running sum over chunks; the weights of the error; centring, the largest of a row, scaling and rounding; of a
# token in a level of a tree, its digits in four passes and its place in the fifth.
SEARCH, LIST, ERROR, QUANTISE, HALVE = 3 * 31 * 3, 10, 6, 6, 4 * 8 + 16


class Model(NamedTuple):
    """One model at one size; tokens are video and others (text) together."""

    name: str
    video: int
    others: int
    heads: int

    @property
    def tokens(self) -> int:
        return self.video + self.others


MODELS = (
    Model("Wan 2.1 14B, 720p, 81 frames", 75_600, 0, 40),
    Model("Wan 2.1 14B, 480p, 81 frames", 32_760, 0, 40),
    Model("HunyuanVideo, 720p, 129 frames", 118_800, 256, 24),
    Model("Wan 2.1 1.3B, 480p, 81 frames", 32_760, 0, 12),
)


class Peaks(NamedTuple):
    """card: matrix units and memory; vector: fp32 TFLOP/s; exponentials: 10^12 a second; source: where it is from."""

    card: Card
    vector: float
    exponentials: float
    source: str


def _exponentials(processors: int, gigahertz: float) -> float:
    """16 a clock on every multiprocessor (CUDA C++ Programming Guide, arithmetic throughput), in 10^12 a second."""
    return 16e-3 * processors * gigahertz


PEAKS = (
    Peaks(
        H200,
        66.9,
        _exponentials(132, 1.98),
        "NVIDIA H200 data sheet: 1,979 TFLOP/s bf16 and 3,958 FP8 and INT8 *with sparsity*, halved here; 4.8 TB/s. "
        "[hmc-tech.com](https://hmc-tech.com/gpu/nvidia-h100-vs-nvidia-h200-sxm-vs-nvidia-gb200) repeats 3.96 POPS "
        "sparse INT8, 66.91 TFLOP/s FP32, 1980 MHz and 16,896 shaders.",
    ),
    Peaks(
        RTX_4090,
        82.6,
        _exponentials(128, 2.52),
        "NVIDIA Ada GPU architecture whitepaper, appendix A, repeated by [hmc-tech.com]"
        "(https://hmc-tech.com/gpus/nvidia-geforce-rtx-4090-vs-nvidia-rtx-pro-5000-blackwell): 165.2 bf16 and 330.3 "
        "FP8 with fp32 accumulation, 660.6 INT8, 1.01 TB/s.",
    ),
    Peaks(
        RTX_5090,
        104.8,
        _exponentials(170, 2.407),
        "NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A. Public pages give 838 TFLOP/s FP16 *with "
        "sparsity and fp16 accumulation* and 1,792 GB/s ([spheron.network]"
        "(https://www.spheron.network/blog/nvidia-rtx-5090-specs/)): a quarter of it is the dense bf16 rate with fp32 "
        "accumulation here, FP8 is twice and INT8 four times that, as on the RTX 4090.",
    ),
)


class Work(NamedTuple):
    """half, keys_8bit, values_8bit: TFLOP of the matrix units in 16 bits, of queries with keys and of weights with
    values in 8; vector: 10^12 operations; exponentials: 10^12; bytes: GB, each tensor once; like: what the matrix units
    do, `dense` or `sparse` attention or a plain `product`."""

    half: float = 0.0
    keys_8bit: float = 0.0
    values_8bit: float = 0.0
    vector: float = 0.0
    exponentials: float = 0.0
    bytes: float = 0.0
    like: str = "product"

    @property
    def matrix(self) -> float:
        return self.half + self.keys_8bit + self.values_8bit

    def bounds(self, peaks: Peaks, *, at_peak: bool) -> dict[str, float]:
        """Milliseconds that each unit needs alone, at its peak or at the stated part of it."""
        card = peaks.card
        matrix = self.half / card.half + self.keys_8bit / card.int8
        if self.values_8bit:
            matrix += self.values_8bit / card.fp8
        parts = {
            "matrix": (matrix, matrix_parts(card)[self.like]),
            "vector": (self.vector / peaks.vector, OTHER_EFFICIENCY),
            "exp": (self.exponentials / peaks.exponentials, OTHER_EFFICIENCY),
            "memory": (self.bytes / card.bandwidth / 1e3, BANDWIDTH_EFFICIENCY),
        }
        return {name: 1e3 * seconds / (1 if at_peak else part) for name, (seconds, part) in parts.items()}


def matrix_parts(card: Card) -> dict[str, float]:
    """The part of the matrix units' peak that each kind of work is taken to reach, 0..1."""
    return {"dense": card.attention, "sparse": card.attention * SPARSE_EFFICIENCY, "product": card.product}


def kernels(model: Model) -> dict[str, Work]:
    """Work of every kernel in one attention call of one batch row at DENSITY, with the pack's clusters."""
    heads, tokens, video = model.heads, model.tokens, model.video
    queries, keys = CLUSTERS.blocks(video)
    rows = tokens + CHUNK / 2 * keys  # of gathered keys or values: half a chunk is added to a cluster
    tensor, gathered = (2e-9 * heads * count * DIM for count in (tokens, rows))
    index = 4e-9 * heads * tokens
    pairs = 1e-12 * heads * tokens**2
    multiplied = pairs * DENSITY * CLUSTERS.padding(video)
    lists = 4e-9 * heads * queries * DENSITY * rows / CHUNK
    map_entries = 1e-12 * heads * queries * keys
    clusters = queries + keys
    shifts = tensor / SHIFT_STRIDE + tensor  # the mean key, the largest values
    return {
        "dense attention": Work(half=4 * pairs * DIM, exponentials=pairs, bytes=4 * tensor, like="dense"),
        "sparse attention, 16 bits": Work(
            half=4 * multiplied * DIM,
            exponentials=multiplied,
            bytes=2 * tensor + 2 * gathered + lists,
            like="sparse",
        ),
        "sparse attention, INT8 and FP8": Work(
            keys_8bit=2 * multiplied * DIM,
            values_8bit=2 * multiplied * DIM,
            exponentials=multiplied,
            bytes=2 * tensor + gathered + 4e-9 * heads * rows + lists,
            like="sparse",
        ),
        "gather, K and V": Work(bytes=2 * tensor + 2 * gathered + 2 * index),
        "quantise, K and V": Work(
            vector=1e-12 * QUANTISE * 2 * heads * rows * DIM,
            bytes=2 * tensor + shifts + gathered + 2 * index + 4e-9 * heads * rows,
        ),
        "k-means assign, Q and K, a round": Work(
            half=2e-12 * heads * video * clusters * DIM,
            vector=3e-12 * heads * video * clusters,
            bytes=4e-9 * heads * video * DIM + 8e-9 * heads * video + 2e-9 * heads * clusters * DIM,
        ),
        "block means, Q and K, a round": Work(
            vector=2e-12 * heads * video * DIM,
            bytes=4e-9 * heads * video * DIM + 16e-9 * heads * video + 4e-9 * heads * clusters * DIM,
        ),
        "map selection": Work(vector=SEARCH * map_entries, bytes=5e3 * map_entries),
        "chunk lists": Work(
            vector=1e-12 * LIST * heads * queries * rows / CHUNK,
            bytes=1e3 * map_entries + 8e-9 * heads * rows / CHUNK + lists,
        ),
        "compensation error": Work(
            half=2e-12 * heads * queries * video * DIM,
            vector=1e-12 * heads * video * (ERROR * queries + 4 * DIM),
            exponentials=1e-12 * heads * queries * video,
            bytes=2 * tensor + index + 4e3 * map_entries,
        ),
        **_tree_kernels(model),
    }


def _tree_kernels(model: Model) -> dict[str, Work]:
    """Work of the kernels whose share in a call depends on full blocks."""
    heads, tokens, video = model.heads, model.tokens, model.video
    queries, keys = LEAVES.blocks(video)
    tensor = 2e-9 * heads * tokens * DIM
    depth = tree_depth(queries) + tree_depth(keys)
    sampled = tree_samples(video, queries) + tree_samples(video, keys)
    nodes = queries + keys  # about as many as leaves
    kept = 1e-12 * heads * tokens**2 * (DENSITY + (1 - DENSITY) / TALL)  # with the tail
    map_entries = 1e-12 * heads * queries * keys
    lists = 4e-9 * heads * queries * DENSITY * tokens / TALL
    return {
        "axis trees, Q and K": Work(
            half=2e-12 * heads * sampled * DIM**2,
            vector=1e-12 * heads * (nodes * ROUNDS * 4 * DIM**2 + video * depth * (2 * DIM + HALVE)),
            # Channels, token numbers and their places on the axes, which are written and read five times.
            bytes=1e-9 * heads * ((sampled + video * depth) * (2 * DIM + 4) + video * depth * (6 * 4 + 8)),
        ),
        "map selection, full blocks": Work(vector=SEARCH * map_entries, bytes=5e3 * map_entries),
        "chunk lists, full blocks": Work(
            vector=1e-12 * LIST * heads * queries * tokens / TALL,
            bytes=1e3 * map_entries + 8e-9 * heads * tokens / TALL + lists,
        ),
        "sparse attention, full blocks, 16 bits": Work(
            half=4 * kept * DIM, exponentials=kept, bytes=4 * tensor + lists, like="sparse"
        ),
        "sparse attention, full blocks, INT8 and FP8": Work(
            keys_8bit=2 * kept * DIM,
            values_8bit=2 * kept * DIM,
            exponentials=kept,
            bytes=3 * tensor + 4e-9 * heads * tokens + lists,
            like="sparse",
        ),
    }


# How often each kernel runs in one warm call of svg2, and in a call of tree, whose tail takes the means of V too.
SVG2 = {
    "k-means assign, Q and K, a round": WARM_ITERATIONS,
    "block means, Q and K, a round": WARM_ITERATIONS,
    "map selection": 1,
    "chunk lists": 1,
}
TREE = {
    "axis trees, Q and K": 1,
    "block means, Q and K, a round": 1.5,
    "map selection, full blocks": 1,
    "chunk lists, full blocks": 1,
}
CALLS = {
    "svg2 call, 16 bits": {**SVG2, "gather, K and V": 1, "sparse attention, 16 bits": 1},
    "svg2 call, INT8 and FP8": {**SVG2, "quantise, K and V": 1, "sparse attention, INT8 and FP8": 1},
    "tree call, 16 bits": {**TREE, "gather, K and V": 1, "sparse attention, full blocks, 16 bits": 1},
    "tree call, INT8 and FP8": {**TREE, "quantise, K and V": 1, "sparse attention, full blocks, INT8 and FP8": 1},
}


# Attention of DC-AE in the sana decoder at an eighth of the image's side: 512 channels, and as many of one scale.
AUTOENCODER_HEADS, AUTOENCODER_DIM, AUTOENCODER_FACTOR = 32, 32, 8
# Vector operations for a key: to fp32 and back, relu, sum; for a query: to fp32, relu, parts, weight, division.
KEY, QUERY = 4, 18


def linear_attention(pixels: int) -> dict[str, Work]:
    """Work of DC-AE's attention in one block, 16 bits, for an image of pixels x pixels."""
    count = 1e-12 * AUTOENCODER_HEADS * (pixels // AUTOENCODER_FACTOR) ** 2  # of tokens and heads
    dim = AUTOENCODER_DIM
    return {
        "sums of keys and values": Work(
            half=2 * count * dim**2,
            vector=KEY * count * dim,
            bytes=1e3 * count * (4 * dim + 8 * dim * (dim + 1) / PART),
        ),
        "results": Work(half=6 * 2 * count * dim**2, vector=QUERY * count * dim, bytes=1e3 * count * 4 * dim),
        "both in plain PyTorch": Work(vector=4 * count * dim**2, bytes=1e3 * count * 72 * dim),
    }


def milliseconds(work: Work, peaks: Peaks, *, at_peak: bool) -> float:
    """The time of the slowest unit: the roofline."""
    return max(work.bounds(peaks, at_peak=at_peak).values())


INTRODUCTION = f"""# Roofline

What each kernel has to do in one attention call of one batch row, and what that takes on three cards. All of it is
calculated; **nothing on this page was measured**. It is what measured times are to be held against.
`python -m dit_accel.tests.bench roofline > kernels/ROOFLINE.md` writes the page, and a test compares the two.

Head dimension {DIM}, density {DENSITY}, clusters as svg2 makes them for that many tokens, full blocks of
{QUERY_TILE} queries and {TALL} keys as tree has them. Products in tiles that clusters do not fill are counted, since
the matrix units make them all the same. GB: every tensor is read or written once; what a kernel reads again is taken
to come from the cache. Launches, the counting sort of k-means and PyTorch's small work around the kernels are left
out.

## Work"""
LINEAR = f"""
## Linear attention of DC-AE

One block of the sana decoder at an eighth of the image's side, where its tokens are most: {AUTOENCODER_HEADS} heads of
dimension {AUTOENCODER_DIM}, bf16. Cells as under *Time*. Plain PyTorch works in fp32, a kernel for each operation; its
products are taken to run on the vector units, as without TF32.
"""
TIME = """
## Time

Each cell: milliseconds at peak / milliseconds expected, and the unit that sets the latter: the matrix units, the vector
units, the exponentials or the memory. The sums at the end are a warm call of svg2 and a call of tree; dense attention
is at the top.
*Expected* takes these parts of the peaks, the same as the gate's shipped costs:
"""


def page() -> str:
    """kernels/ROOFLINE.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    for model in MODELS:
        queries, keys = CLUSTERS.blocks(model.video)
        yield from (
            "",
            f"{model.name}: {model.tokens:,} tokens, {model.heads} heads, {queries} query and {keys} key clusters,",
            f"{CLUSTERS.padding(model.video):.2f} products for each useful one.",
            "",
        )
        yield from _table(
            ("kernel", "matrix TFLOP", "vector GFLOP", "10^9 exponentials", "GB"),
            [
                (name, *map(_number, (work.matrix, 1e3 * work.vector, 1e3 * work.exponentials, work.bytes)))
                for name, work in kernels(model).items()
            ],
        )
    yield LINEAR
    yield from _table(
        ("image", "kernel", "matrix TFLOP", "vector GFLOP", "GB", *(peaks.card.name for peaks in PEAKS)),
        [
            (
                f"{pixels} x {pixels}",
                name,
                *map(_number, (work.matrix, 1e3 * work.vector, work.bytes)),
                *(_cell(work, peaks) for peaks in PEAKS),
            )
            for pixels in (1024, 2048, 4096)
            for name, work in linear_attention(pixels).items()
        ],
    )
    yield TIME
    yield from _table(
        ("card", "dense attention", "sparse attention", "other products", "vector, exp", "memory"),
        [
            (
                peaks.card.name,
                *(
                    f"{part:.0%}"
                    for part in (*matrix_parts(peaks.card).values(), OTHER_EFFICIENCY, BANDWIDTH_EFFICIENCY)
                ),
            )
            for peaks in PEAKS
        ],
    )
    for peaks in PEAKS:
        card = peaks.card
        yield from (
            "",
            f"### {card.name}",
            "",
            f"Peaks: {card.half:g} TFLOP/s bf16, {card.int8:g} INT8, {card.fp8:g} FP8, dense, with fp32 or int32 sums;",
            f"{peaks.vector:g} TFLOP/s vector fp32; {peaks.exponentials:.2f} x 10^12 exponentials/s;",
            f"{card.bandwidth:g} TB/s. Source: {peaks.source}",
            "",
        )
        yield from _table(("kernel", *(model.name for model in MODELS)), _times(peaks))


def _times(peaks: Peaks) -> list[Sequence[str]]:
    works = [kernels(model) for model in MODELS]
    rows = [(name, *(_cell(work[name], peaks) for work in works)) for name in works[0]]
    for call, counts in CALLS.items():
        cells = []
        for work in works:
            at_peak, expected = (
                sum(count * milliseconds(work[name], peaks, at_peak=at) for name, count in counts.items())
                for at in (True, False)
            )
            cells.append(f"{_number(at_peak)} / {_number(expected)}")
        rows.append((f"**{call}**", *cells))
    return rows


def _cell(work: Work, peaks: Peaks) -> str:
    bounds = work.bounds(peaks, at_peak=False)
    unit = max(bounds, key=bounds.get)
    return f"{_number(milliseconds(work, peaks, at_peak=True))} / {_number(bounds[unit])} {unit}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _number(value: float) -> str:
    return "" if value == 0 else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def run(options: argparse.Namespace) -> int:
    """Prints the page."""
    print(page(), end="")
    return 0
