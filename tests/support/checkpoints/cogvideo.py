"""CogVideoX 1."""

from dit_accel.tests.support.checkpoints.checkpoint import TEXT_WIDTH, Checkpoint

_T2V = {
    "num_attention_heads": 3,  # the position embedding is built for a width that 3 divides
    "attention_head_dim": 64,
    "time_embed_dim": 64,
    "num_layers": 2,
    "in_channels": 16,
    "text_embed_dim": TEXT_WIDTH,
}
CHECKPOINTS = {"cogvideox_t2v": Checkpoint("cogvideo.model.CogVideoXTransformer3DModel", _T2V, 2, seed=32)}
