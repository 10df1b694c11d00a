"""MiniMax H3."""

from dit_accel.tests.support.checkpoints.checkpoint import HEADS, TEXT_WIDTH, WIDTH, Checkpoint

_H3 = {
    "num_layers": 2,
    "token_refiner_num_layers": 1,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": 256,
    "text_dim": TEXT_WIDTH,
    "time_embed_hidden_size": 128,
    "time_embed_dim": 128,
}

CHECKPOINTS = {"minimax_h3": Checkpoint("minimax.model.MiniMaxH3Model", _H3, 2, seed=51)}
