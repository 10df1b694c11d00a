"""Kandinsky 5 lite."""

from dit_accel.tests.support.checkpoints.checkpoint import Checkpoint

# The width of its text is taken for granted.
_LITE = {"model_dim": 128, "ff_dim": 128, "time_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2}
CHECKPOINTS = {"kandinsky5_lite": Checkpoint("kandinsky5.model.Kandinsky5", _LITE, 2, seed=31)}
