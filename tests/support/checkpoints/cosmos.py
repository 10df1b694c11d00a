"""Cosmos 1 and Cosmos Predict 2."""

from dit_accel.tests.support.checkpoints.checkpoint import TEXT_WIDTH, Checkpoint

_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 256,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": TEXT_WIDTH,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
}
COSMOS_1 = {
    **_COSMOS,
    "image_model": "cosmos",
    "block_config": "FA-CA-MLP",
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
PREDICT_2 = {**_COSMOS, "image_model": "cosmos_predict2", "rope_enable_fps_modulation": False}
_IMAGE_TO_VIDEO = {**PREDICT_2, "in_channels": 17}

CHECKPOINTS = {
    "cosmos": Checkpoint("cosmos.model.GeneralDIT", COSMOS_1, 2, seed=34, config=COSMOS_1),
    "cosmos_predict2_i2v": Checkpoint(
        "cosmos.predict2.MiniTrainDIT", _IMAGE_TO_VIDEO, 2, seed=35, config=_IMAGE_TO_VIDEO
    ),
}
