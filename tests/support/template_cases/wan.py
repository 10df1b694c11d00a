"""Templates of Wan 2.1 and 2.2."""

from dit_accel.accel.attention import reasons
from dit_accel.tests.support.template_cases.case import Case

EVERY_PATTERN = [
    Case("text_to_video_wan", "3", {"wan2.1_t2v_1.3B_fp16": "wan21_t2v"}, 3, 3),
    Case(
        "video_wan2_2_14B_fun_inpaint",
        "95",
        {
            "wan2.2_fun_inpaint_high_noise_14B_fp8_scaled": "wan22_inpaint_high",
            "wan2.2_fun_inpaint_low_noise_14B_fp8_scaled": "wan22_inpaint_low",
        },
        4,
        2,
        runs=2,
    ),
    Case("video_wan_vace_14B_t2v", "3", {"wan2.1_vace_14B_fp16": "wan21_vace"}, 4, 4),
]
CASES = [
    Case("video_wan2.1_fun_camera_v1.1_1.3B", "3", {"wan2.1_fun_camera_v1.1_1.3B_bf16": "wan21_camera"}, 3, 3),
    Case("video_humo", "64", {"humo_17B_fp8_e4m3fn": "wan21_humo"}, 3, 3),
    # The first frames and two extensions of them.
    Case("video_wan2_2_14B_s2v", "85:183", {"wan2.2_s2v_14B_fp8_scaled": "wan22_s2v"}, 2, 2, runs=3),
    # Nine frames and nine more, of which the first five are the last of those before.
    Case(
        "video_wan21_scail2_character_replacement",
        "262:227",
        {"wan2.1_14B_SCAIL_2_fp16": "wan21_scail2"},
        2,
        2,
        runs=2,
        inputs={
            "213:177": {"length": 9},
            "213:114": {"length": 9},
            "262:235": {"length": 9},
            "262:241": {"values.b": 9},
            "262:259": {"length": 9},
        },
        standins={"SAM3_VideoTrack": ("StandinTrack", ("images",))},
    ),
    # Key frames of the whole dance, then the frames between them.
    Case(
        "video_wan_dancer",
        "696:667",
        {
            "wan2.2_dancer_14b_global_fp8_scaled": "wan22_dancer_global",
            "wan2.2_dancer_14b_local_fp8_scaled": "wan22_dancer_local",
        },
        2,
        2,
        runs=2,
        inputs={"696:491": {"value": 5}, "696:651": {"video_frames": 5}},
    ),
    Case(
        "video_wan2_1_infinitetalk",
        "324:322",
        {"Wan2_1-I2V-14B-480p_fp8_e4m3fn_scaled_KJ": "wan21_i2v_wide"},
        2,
        2,
        runs=2,
        # As many frames as the second half takes over from the first, and some more.
        inputs={"188:129": {"length": 13}, "324:311": {"length": 13}},
        standins={"ModelPatchLoader": ("StandinTalkPatch", ())},
    ),
    # Two experts, with a video to be edited behind the one that is made.
    Case(
        "video_bernini_r_image_editing",
        "76:15",
        {
            "wan2.2_bernini_r_high_noise_fp8_scaled": "wan21_t2v",
            "wan2.2_bernini_r_low_noise_fp8_scaled": "wan21_t2v",
        },
        4,
        2,
        runs=2,
        inputs={"116": {"resize_type.longer_size": 128}, "76:17": {"step": 2}},
    ),
    Case(
        "video_wan_animate2_distilled",
        "261:19",
        {"wan_animate_2_distill_int8_convrot": "wan_animate2"},
        2,
        2,
        inputs={"261:243": {"resize_type.width": 128, "resize_type.height": 128}},
        dense=reasons.FRAME_BY_FRAME,
    ),
    # A frame that is given passes the model once, to fill the cache; one that is sampled once more than it has steps.
    Case(
        "video_causal_forcing_i2v",
        "29:15",
        {"causal_forcing-framewise": "wan21_causal"},
        2,
        4,
        dense=reasons.CACHED_KEYS,
    ),
]
