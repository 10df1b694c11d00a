"""Templates of Kandinsky 5."""

from dit_accel.tests.support.template_cases.case import Case

CASES = [
    Case(
        "video_kandinsky5_t2v",
        "12:8",
        {"kandinsky5lite_t2v_sft_5s": "kandinsky5_lite"},
        3,
        3,
        standins={"DualCLIPLoader": ("StandinWideClip", ())},
    )
]
