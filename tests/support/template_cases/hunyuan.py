"""Templates of HunyuanVideo 1 and 1.5."""

from dit_accel.tests.support.template_cases.case import Case

EVERY_PATTERN = [
    Case("video_hunyuan_video_1.5_720p_t2v", "127", {"hunyuanvideo1.5_720p_t2v_fp16": "hunyuan_video_15"}, 3, 3),
]
CASES = [
    Case("hunyuan_video_text_to_video", "13", {"hunyuan_video_t2v_720p_bf16": "hunyuan_video"}, 3, 3),
    Case(
        "video_capybara_v0_1_image_to_video",
        "103:13",
        {"capybara_v0.1": "hunyuan_video_15"},
        2,
        2,
        standins={"VAELoader": ("StandinHunyuan15Vae", ())},
    ),
]
