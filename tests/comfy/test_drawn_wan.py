"""A Wan model with drawn weights: what is timed is ComfyUI's own forward, dense and sparse."""

import json

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.comfy.folders import BUNDLED
from dit_accel.accel.headless.attention_clock import AttentionClock
from dit_accel.accel.headless.drawn_wan import BIAS, MODULATION, NORM, WEIGHT, DrawnWan, WanShape
from dit_accel.accel.headless.loading import load_diffusion_model
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.bench.forward import drawn_latent

GRID = (4, 8, 10)
SHAPE = WanShape(256, 2, 2)


@pytest.fixture(scope="module")
def drawn(comfy):
    return DrawnWan(SHAPE, drawn_latent(GRID), torch.device("cpu"), torch.float32)


def settings(**changes):
    whole = {"dense_first": 0.0, "dense_blocks": frozenset(), "min_tokens": 0, "floor": 0.0, "top_p": 1.0}
    return Settings("window", "16-bit", guard="off", fallback="reference", budget=Budget(**{**whole, **changes}))


def test_it_is_wan_of_that_shape(drawn):
    network = drawn._model.model.diffusion_model
    assert type(network).__name__ == "WanModel" and len(network.blocks) == 2
    assert network.blocks[0].ffn[0].out_features == SHAPE.feed_forward == 704
    assert WanShape(5120, 40, 40).feed_forward == 13824


def test_the_weights_are_drawn_as_the_trained_model_has_them(comfy, drawn):
    """The constants are the means of what the bundled model has, block by block."""
    ours = drawn._model.model.diffusion_model
    trained = load_diffusion_model(next((BUNDLED / "diffusion_models").glob("*.safetensors"))).model.diffusion_model
    parts = {
        "weight": (lambda block: block.self_attn.v.weight, lambda x: x.std() * x.shape[1] ** 0.5, WEIGHT),
        "norm": (lambda block: block.self_attn.norm_q.weight, torch.Tensor.mean, NORM),
        "modulation": (lambda block: block.modulation, torch.Tensor.std, MODULATION),
        "bias": (lambda block: block.self_attn.q.bias, torch.Tensor.std, BIAS),
    }
    for name, (part, measure, constant) in parts.items():
        drawn_as, has = (
            torch.stack([measure(part(block).float()) for block in network.blocks]).mean()
            for network in (ours, trained)
        )
        assert drawn_as == pytest.approx(constant, rel=0.1), name
        assert drawn_as == pytest.approx(has, rel=0.5), name


def test_an_evaluation_is_the_networks_output_and_repeats(drawn):
    """The second evaluation of a run gives what the first gives, and not nothing."""
    (first, second), clock = drawn.dense(lambda evaluate: (evaluate(), evaluate()))
    assert torch.equal(first, second) and first.std() > 0.01
    assert clock.milliseconds(4) > clock.milliseconds(2) > 0
    with pytest.raises(ValueError, match="expected 5 calls of self-attention, found 4"):
        clock.milliseconds(5)


def test_the_clock_changes_nothing(drawn):
    plain = drawn._run(drawn._model, lambda evaluate: evaluate())
    assert torch.equal(plain, drawn.dense(lambda evaluate: evaluate())[0])


def test_sparse_is_the_packs_own_way(drawn):
    """At density 1 the same result; below it another, by sparse calls alone, in every evaluation and layer."""
    dense, _ = drawn.dense(lambda evaluate: evaluate())
    for density in (1.0, 0.3):
        out, summary = drawn.sparse(settings(max_density=density), lambda evaluate: (evaluate(), evaluate())[1])
        assert summary.sparse == {"torch": 4} and summary.expected == 4
        assert summary.density == pytest.approx(density, rel=0.15)
        error = (out - dense).norm() / dense.norm()
        assert error < 1e-4 if density == 1 else 1e-3 < error < 1


def test_the_clock_leaves_cross_attention_out():
    clock = AttentionClock()
    q, text = torch.zeros(1, 8, 4), torch.zeros(1, 6, 4)
    for k in (text, q):
        assert clock._timed(lambda q, k, v, heads, **options: "out", q, k, k, 2, transformer_options={}) == "out"
    assert len(clock._watches) == 1


def test_the_command(comfy, tmp_path, capsys):
    path = tmp_path / "rows.json"
    asked = ["--pattern", "svg2", "window", "--precision", "16-bit", "8-bit", "--repeats", "1", "--json", str(path)]
    assert main(["forward", "--layers", "1", "2", *asked]) == 0
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["what"], row["pattern"], row["precision"]) for row in rows] == [
        (what, pattern, precision)
        for what in ("block", "forward")
        for pattern in ("svg2", "window")
        for precision in ("16-bit", "8-bit")
    ]
    for row in rows:
        assert row["valid"] and row["sparse_share"] == 1 and row["tokens"] == 320 and 0 < row["attention_share"] < 1
        assert row["backend"] == ("torch" if row["precision"] == "16-bit" else "reference 8-bit")
        assert 0.001 < row["error"] < 1 and 0.15 < row["density"] <= 0.275
    said = capsys.readouterr().out
    assert "in plain PyTorch" in said and "The guard is off." in said
    assert main(["forward", "--layers", "1", "2", *asked, "--resume"]) == 0
    assert json.loads(path.read_text("utf-8"))["rows"] == rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dim", "100", "--heads", "2"], "--dim: expected 64 or 128 channels for each of 2 heads, found 100"),
        (["--pattern", "none"], "--pattern: expected some of"),
    ],
)
def test_what_does_not_fit_is_named(comfy, capsys, arguments, words):
    assert main(["forward", *arguments]) == 1
    assert words in capsys.readouterr().err
