"""Templates of LTX-Video and LTX-2."""

from dit_accel.tests.support.template_cases.case import Case

_LTX_2 = {"ltx-2-19b-dev-fp8": "ltx_2"}
_LOADERS = {
    "CheckpointLoaderSimple": ("StandinLtxCheckpoint", ("ckpt_name",)),
    "LTXAVTextEncoderLoader": ("StandinClip", ()),
    "LTXVAudioVAELoader": ("StandinAudioVae", ()),
    "LatentUpscaleModelLoader": ("StandinLatentUpscaler", ()),
}

# LTX-Video's first frame is given; LTX-2 samples audio and video together, first small, then twice as large.
CASES = [
    Case(
        "ltxv_image_to_video",
        "72",
        {"ltx-video-2b-v0.9.5": "ltx_video"},
        3,
        3,
        inputs={"77": {"length": 65}},
        standins={**_LOADERS, "CLIPLoader": ("StandinPaddedClip", ())},
    ),
    Case(
        "video_ltx2_i2v",
        "92:70",
        _LTX_2,
        3,
        3,
        runs=2,
        inputs={
            "92:43": {"length": 65},
            "92:51": {"frames_number": 65},
            "92:113": {"resize_type.longer_size": 128},
        },
        standins=_LOADERS,
    ),
    # The edges of a given video guide the first of its runs; they are cropped before the second.
    Case(
        "video_ltx2_canny_to_video",
        "143:107",
        _LTX_2,
        3,
        3,
        runs=2,
        inputs={
            "152": {"length": 17},
            "166": {"value": 384},
            "167": {"value": 384},
            "143:115": {"width": 192, "height": 192, "length": 17},
        },
        standins=_LOADERS,
    ),
]
