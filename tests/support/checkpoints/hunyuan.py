"""HunyuanVideo 1 and 1.5."""

from dit_accel.tests.support.checkpoints.checkpoint import HEADS, TEXT_WIDTH, WIDTH, Checkpoint

_HUNYUAN = {
    "out_channels": 16,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": HEADS,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "meanflow": False,
}
_HUNYUAN_1 = {
    **_HUNYUAN,
    "in_channels": 16,
    "vec_in_dim": 768,
    "patch_size": [1, 2, 2],
    "guidance_embed": True,
    "byt5": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
# 1.5: 32 latent channels, the same as image condition, one mask; only double blocks.
_HUNYUAN_15 = {
    **_HUNYUAN,
    "in_channels": 65,
    "out_channels": 32,
    "vec_in_dim": None,
    "patch_size": [1, 1, 1],
    "depth": 2,
    "depth_single_blocks": 0,
    "guidance_embed": False,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
}
_NETWORK = "hunyuan_video.model.HunyuanVideo"

CHECKPOINTS = {
    "hunyuan_video": Checkpoint(_NETWORK, _HUNYUAN_1, 2, seed=5),
    "hunyuan_video_15": Checkpoint(_NETWORK, _HUNYUAN_15, 2, seed=6),
}
