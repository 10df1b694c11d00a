"""What planning costs: every step of every pattern, the gathers that its orders ask for, and k-means beside a peer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.plan import SparsePlan
from dit_accel.accel.attention.planners.clusters import KEYS, WARM_ITERATIONS, kmeans_clusters, sample_centroids
from dit_accel.accel.bench.case import Case
from dit_accel.accel.bench.density import budget_at
from dit_accel.accel.bench.pattern_row import Planner
from dit_accel.accel.bench.timing import WARM_UP, timed
from dit_accel.kernels.block_sparse_attention import key_chunks
from dit_accel.kernels.gather import chunk_lists, gather_chunks
from dit_accel.kernels.kmeans import assign
from dit_accel.tests.bench.baselines import version_of
from dit_accel.tests.bench.steps import step_medians

Row = dict[str, Any]
FIRST, LATER = "first", "later"
PEER = "flash-kmeans"


def rows_of(
    case: Case, patterns: Sequence[str], densities: Sequence[float], done: Callable[..., bool]
) -> Iterator[Row]:
    """One row for each pattern and density, of a run's first call and of a later one, and k-means by two hands.
    done(**fields) says that there is a row with such fields, which is left out."""
    for density in densities:
        for pattern in patterns:
            if done(pattern=pattern, asked_density=density):
                continue
            yield from pattern_rows(case, pattern, density)
    for name, (cluster, iterations) in CLUSTERINGS.items():
        if not done(pattern=name):
            yield clustering_row(case, name, cluster, iterations)


def pattern_rows(case: Case, pattern: str, density: float) -> Iterator[Row]:
    """The steps of planning, each as two medians in milliseconds, `gathers` among them: they belong to the executor,
    which needs them because of the plan's orders."""
    row = case.about() | {"pattern": pattern, "asked_density": density}
    choice = budget_at(lambda: Planner(case, pattern, Budget()).call, pattern, density)
    if choice is None:
        yield row | {"remark": "skipped: the pattern cannot give that density here"}
        return
    planner = Planner(case, pattern, choice[0])
    for call, plan in ((FIRST, planner.first), (LATER, planner.again)):
        for _ in range(WARM_UP[case.device.type]):
            last = plan()
        steps, again = (step_medians(plan, case.repeats, case.device) for _ in range(2))
        _, *gather_ms = timed(lambda last=last: gathers(case, last), case.repeats, case.device)
        steps["gathers"], again["gathers"] = gather_ms
        yield row | {
            "call": call,
            "density": last.density().item(),
            "query_blocks": last.queries.blocks,
            "key_blocks": last.keys.blocks,
            "steps_ms": steps,
            "steps_again_ms": again,
            "dense_ms": case.dense.ms,
            "remark": "",
        }


def gathers(case: Case, plan: SparsePlan) -> tuple[Tensor, ...]:
    """What Triton's executor prepares for a plan at 16 bits: lists of kept chunks, and keys and values in chunks."""
    keys = plan.keys
    tall_chunks = keys.tall_chunks if case.backend == "triton" else None
    backend = "triton" if case.backend == "triton" else "reference"
    chunk, (block, start, live) = key_chunks(keys.offsets, keys.tokens.shape[1], tall_chunks, case.device)
    lists = chunk_lists(plan.keep, block, live, keys.index, backend=backend)
    chunks = (gather_chunks(x, keys.tokens, keys.index, start, live, chunk, backend=backend) for x in (case.k, case.v))
    return *lists, *chunks


def ours(tokens: Tensor, start: Tensor, backend: str) -> Callable[[], Tensor]:
    """The pack's k-means: a function that returns centroids [B, H, C, D]."""
    return lambda: kmeans_clusters(tokens, start, WARM_ITERATIONS, backend=backend).centroids


def peer(tokens: Tensor, start: Tensor, backend: str) -> Callable[[], Tensor]:
    """flash-kmeans (0.3.1) on the same tokens from the same start: a function that returns centroids [B, H, C, D].

    It does the same work: with tol 0 it never stops early, and both return the centroids after the last iteration's
    means; an empty cluster keeps its centroid, and of equal distances the lowest index wins. It differs in precision:
    the tokens' squared norms, which it adds to every distance, are rounded to 16 bits, and distances below 0 become 0,
    so that clusters within 1/22 of a bf16 token's length of it may tie, and fp16 tokens longer than 256 all go to
    cluster 0; its means are summed by atomics, in an order of chance. The inertia says what that costs. The host waits
    for the GPU after every iteration, which its time includes. Raises ImportError where the package or its Triton
    kernels cannot be imported: the package itself would then quietly run in PyTorch.
    """
    cluster = importlib.import_module("flash_kmeans.kmeans_triton_impl").batch_kmeans_Euclid
    flat, centroids = tokens.flatten(0, 1).contiguous(), start.flatten(0, 1).contiguous()

    def run() -> Tensor:
        _, centroids_after, *_ = cluster(
            flat, start.shape[2], max_iters=WARM_ITERATIONS, tol=0.0, init_centroids=centroids
        )
        return centroids_after.view_as(start)

    return run


def our_labels(tokens: Tensor, start: Tensor, backend: str) -> Callable[[], Tensor]:
    """Half an iteration of the pack's k-means: a function that returns labels int32 [B, H, N]."""
    return lambda: assign(tokens, start, backend=backend)


def peer_labels(tokens: Tensor, start: Tensor, backend: str) -> Callable[[], Tensor]:
    """The same half of flash-kmeans, the one that neither waits for the GPU nor adds in an order of chance. Given the
    norms in fp32 its labels are ours but for rounding; making the norms is left out of its time. Raises as `peer`."""
    nearest = importlib.import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    flat, centroids = tokens.flatten(0, 1).contiguous(), start.flatten(0, 1).contiguous()
    norms = flat.float().square().sum(-1)
    return lambda: nearest(flat, centroids, norms).view(tokens.shape[:3])


# What clusters, and its iterations; 0: it returns the labels of the start.
CLUSTERINGS = {
    "k-means": (ours, WARM_ITERATIONS),
    PEER: (peer, WARM_ITERATIONS),
    "k-means labels": (our_labels, 0),
    f"{PEER} labels": (peer_labels, 0),
}


def clustering_row(case: Case, name: str, cluster: Callable, iterations: int) -> Row:
    """K-means over the video's keys: its time, and the mean squared distance of a key to its nearest centroid for the
    very centroids that were timed, relative to the keys' mean square; with 0 iterations the distance to the centroid
    of its label."""
    row = case.about() | {"pattern": name, "asked_density": None}
    video = slice(case.layout.prefix, case.layout.prefix + case.layout.video)
    tokens = case.k[:, :, video]
    start = sample_centroids(tokens, KEYS.count(case.layout.video))
    try:
        out, ms, again_ms = timed(cluster(tokens, start, case.backend), case.repeats, case.device)
    # A peer refuses with whatever its libraries raise.
    except Exception as error:
        return row | {"remark": f"skipped: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    centroids, labels = (out, assign(tokens, out, backend="reference")) if iterations else (start, out)
    return row | {
        "call": LATER,
        "clusters": start.shape[2],
        "iterations": iterations,
        "version": version_of(PEER) if name.startswith(PEER) else None,
        "inertia": _inertia(tokens, centroids, labels),
        "steps_ms": {"clustering": ms},
        "steps_again_ms": {"clustering": again_ms},
        "dense_ms": case.dense.ms,
        "remark": "",
    }


def _inertia(tokens: Tensor, centroids: Tensor, labels: Tensor) -> float:
    chosen = centroids.gather(2, labels.long()[..., None].expand(tokens.shape)).float()
    return ((tokens.float() - chosen).square().sum() / tokens.float().square().sum()).item()
