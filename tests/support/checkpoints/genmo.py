"""Mochi."""

from dit_accel.tests.support.checkpoints.checkpoint import TEXT_WIDTH, Checkpoint

MOCHI = {
    "image_model": "mochi_preview",
    "depth": 2,
    "patch_size": 2,
    "num_heads": 2,
    "hidden_size_x": 256,
    "hidden_size_y": 128,
    "mlp_ratio_x": 48.0,  # a block demands the real model's width: 256 * 48 == 1536 * 8
    "mlp_ratio_y": 4.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "patch_embed_bias": True,
    "posenc_preserve_area": True,
    "timestep_mlp_bias": True,
    "attend_to_padding": False,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": TEXT_WIDTH,
    "t5_token_length": 256,
    "rope_theta": 10000.0,
}

CHECKPOINTS = {
    "mochi": Checkpoint("genmo.joint_model.asymm_models_joint.AsymmDiTJoint", MOCHI, 2, seed=33, config=MOCHI)
}
