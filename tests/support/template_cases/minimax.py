"""Templates of MiniMax H3."""

from dit_accel.tests.support.template_cases.case import Case

_VAE = {"VAELoader": ("StandinH3Vae", ())}

# The second has a reference image, and keyframes at the frames 36, 72 and 120.
CASES = [
    Case(
        "video_minimax_h3_t2v",
        "140:125",
        {"minimax_h3_fl2va_pruned_int8_convrot": "minimax_h3"},
        3,
        3,
        inputs={"140:131": {"length": 39}},
        standins=_VAE,
    ),
    Case(
        "video_minimax_h3_multiframe_reference",
        "125",
        {"minimax_h3_ref2va_pruned_int8_convrot": "minimax_h3"},
        3,
        3,
        inputs={"136": {"length": 124}},
        standins=_VAE,
    ),
]
