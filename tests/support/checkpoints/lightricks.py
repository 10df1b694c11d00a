"""LTX-Video and LTX-2."""

from dit_accel.tests.support.checkpoints.checkpoint import HEADS, TEXT_WIDTH, Checkpoint

# Files of these models carry all their settings, and need to: ComfyUI takes 32 heads for granted.
_LTXV = {
    "num_layers": 2,
    "num_attention_heads": HEADS,
    "attention_head_dim": 64,
    "cross_attention_dim": HEADS * 64,
    "caption_channels": TEXT_WIDTH,
}
_LTX_2 = {
    "num_layers": 2,
    "num_attention_heads": HEADS,
    "attention_head_dim": 128,
    "cross_attention_dim": HEADS * 128,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": HEADS * 64,
    "caption_channels": TEXT_WIDTH,
    "connector_num_attention_heads": 1,
    "connector_attention_head_dim": TEXT_WIDTH,
    "connector_num_layers": 1,
    "rope_type": "split",
    "frequencies_precision": "float64",
}

CHECKPOINTS = {
    "ltx_video": Checkpoint("lightricks.model.LTXVModel", _LTXV, 2, seed=41, config=_LTXV),
    "ltx_2": Checkpoint("lightricks.av_model.LTXAVModel", _LTX_2, 2, seed=42, config=_LTX_2),
}
