"""Why a call stayed dense: short constant strings, counted per run and shown to the user."""

from collections.abc import Mapping

MASK = "mask"
CROSS_ATTENTION = "cross-attention"
GROUPED_QUERY = "grouped-query attention"
FULL_PRECISION = "full precision asked for"
GRADIENTS = "gradients"
OTHER_STREAM = "not the video stream"
FAMILY = "family not enabled yet"
TOO_SHORT = "fewer than min_tokens"
OUTSIDE_WINDOW = "outside the budget's window"
DENSE_BLOCK = "dense_blocks"
OTHER_OVERRIDE = "another sparse attention owns the call"
OUT_OF_MEMORY = "out of memory"
NO_KERNEL = "no fast kernel"
AMBIGUOUS = "another sequence is as long as the video's"
IMAGE = "image model"
FRAME_BY_FRAME = "attention frame by frame"
CACHED_KEYS = "keys of earlier frames in a cache"
DENSE_FASTER = "dense is faster here, by the cost model"
TIMED_DENSE = "dense is faster here, by this run's times"
UNTRIED = "one layer is tried first"
NOT_ASKED = "recorded, not made sparse"
GUARD = "the guard"
PROFILE = "the profile keeps this layer whole"
STRIDED = "strided head dimension"

# Calls that are no self-attention over the video's tokens.
NOT_SELF_ATTENTION = frozenset({CROSS_ATTENTION, OTHER_STREAM})
# Said of a run or step that no call of the video's self-attention reached.
NO_CALL = "no attention call came by"


def of_video(dense: Mapping[str, int]) -> dict[str, int]:
    """Of calls counted by reason, those of the video's self-attention."""
    return {reason: count for reason, count in dense.items() if reason not in NOT_SELF_ATTENTION}


def commonest(dense: Mapping[str, int]) -> str:
    """Why most calls of the video's self-attention were dense."""
    video = of_video(dense)
    return max(video, key=video.__getitem__, default=NO_CALL)
