"""Wan 2.1 and 2.2 and what was built on them."""

from dit_accel.tests.support.checkpoints.checkpoint import HEADS, TEXT_WIDTH, WIDTH, Checkpoint


def _wan(network: str, calls: int, seed: int, config=None, without=(), **settings) -> Checkpoint:
    """A class in comfy.ldm.wan with, unless changed, two blocks. config: what else the file says about itself."""
    text = {"text_dim": TEXT_WIDTH}
    settings = {"dim": WIDTH, "ffn_dim": 256, "num_heads": HEADS, "num_layers": 2, **text, **settings}
    return Checkpoint(f"wan.{network}", settings, calls, seed, text | (config or {}), without)


CHECKPOINTS = {
    "wan21_t2v": _wan("model.WanModel", 2, 1, model_type="t2v", in_dim=16),
    "wan22_inpaint_high": _wan("model.WanModel", 2, 2, model_type="t2v", in_dim=36),
    "wan22_inpaint_low": _wan("model.WanModel", 2, 3, model_type="t2v", in_dim=36),
    # With one control video.
    "wan21_vace": _wan("model.VaceWanModel", 3, 4, in_dim=16, vace_layers=1, vace_in_dim=96),
    "wan21_camera": _wan("model.CameraWanModel", 2, 11, model_type="camera", in_dim=32),
    "wan22_s2v": _wan("model.WanModel_S2V", 2, 12),
    "wan21_humo": _wan("model.HumoWanModel", 2, 13, in_dim=36),
    "wan21_scail2": _wan("model.SCAIL2WanModel", 2, 14, in_dim=20),
    "wan22_dancer_global": _wan("model_wandancer.WanDancerModel", 2, 15, in_dim=36),
    "wan22_dancer_local": _wan("model_wandancer.WanDancerModel", 2, 16, in_dim=36),
    # InfiniteTalk's adapter has 40 heads, Wan's have 128 channels each.
    "wan21_i2v_wide": _wan("model.WanModel", 2, 17, model_type="i2v", in_dim=36, dim=640, num_heads=5),
    # A face adapter stands behind every fifth block. The large encoders in front of it wait for a video of a face.
    "wan22_animate": _wan(
        "model_animate.AnimateWanModel", 5, 18, None, ("motion_encoder.", "face_encoder."), in_dim=36, num_layers=5
    ),
    # Both have the tensors of other models, and are dense.
    "wan_animate2": _wan("model_animate2.WanAnimate2Model", 0, 19, {"model_type": "animate2"}, in_dim=36),
    "wan21_causal": _wan("model.WanModel", 0, 20, {"causal_ar": True}, model_type="t2v", in_dim=16),
}
