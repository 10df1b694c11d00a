"""Tiny Cosmos 1 and Cosmos Predict 2."""

from __future__ import annotations

import torch

from dit_accel.tests.comfy.tiny.case import Case
from dit_accel.tests.support.checkpoints.cosmos import COSMOS_1, PREDICT_2

# Predict 2's own first sigma, 80, with a high cfg would round the latent by more than the tests allow.
MILD = {"cfg": 2.0, "sampling": {"sigma_max": 1.0}}


def first_frame() -> torch.Tensor:
    """The noise mask of an image-to-video latent."""
    mask = torch.ones(1, 1, 5, 12, 14)
    mask[:, :, 0] = 0
    return mask


CASES = [
    Case("cosmos 1", "CosmosT2V", COSMOS_1, (1, 16, 5, 12, 14), 2),
    Case("cosmos 1 i2v", "CosmosI2V", {**COSMOS_1, "in_channels": 17}, (1, 16, 5, 12, 14), 2, mask=first_frame),
    Case("cosmos predict 2 odd size", "CosmosT2IPredict2", PREDICT_2, (1, 16, 5, 11, 13), 2, **MILD),
    Case(
        "cosmos predict 2 i2v",
        "CosmosI2VPredict2",
        {**PREDICT_2, "in_channels": 17},
        (1, 16, 5, 12, 14),
        2,
        **MILD,
        mask=first_frame,
    ),
    Case(
        "cosmos predict 2 i2v with learned positions",
        "CosmosI2VPredict2",
        {**PREDICT_2, "in_channels": 17, "extra_per_block_abs_pos_emb": True},
        (1, 16, 5, 12, 14),
        2,
        **MILD,
        mask=first_frame,
    ),
]
