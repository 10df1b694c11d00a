"""Why a call stayed dense: short constant strings, counted per run and shown to the user."""

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
STRIDED = "strided head dimension"

# Calls that are no self-attention over the video's tokens.
NOT_SELF_ATTENTION = frozenset({CROSS_ATTENTION, OTHER_STREAM})
