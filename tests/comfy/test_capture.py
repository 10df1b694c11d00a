"""The bench `capture`, whole, at a small size; and the small capture that is committed for the tests."""

import json
import re
from pathlib import Path

import pytest
import torch

from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.bench.captures import read
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.bench.commands import capture
from dit_accel.tests.bench.concentration import key_block_share

SMALL = Path(__file__).parents[1] / "golden" / "small_capture.safetensors"
GRID = (2, 4, 6)


@pytest.fixture(scope="module")
def made(comfy, tmp_path_factory):
    path = tmp_path_factory.mktemp("captures") / "c.safetensors"
    settings = ["--blocks", "1", "4", "--heads", "1", "--sigmas", "0.3", "0.9"]
    assert main(["capture", "--output", str(path), "--grid", *map(str, GRID), *settings]) == 0
    return path


def test_it_holds_what_was_asked_for(made):
    found, provenance = read(made)
    assert [(one.sigma, one.block) for one in found] == [(0.3, 1), (0.3, 4), (0.9, 1), (0.9, 4)]
    for one in found:
        assert one.layout.grid == GRID and one.layout.extra == 0
        assert one.q.shape == (1, 1, 48, 128)
        assert one.q.dtype in (torch.float16, torch.bfloat16)
    assert len({one.sha256() for one in found}) == 4
    assert provenance["model"]["file"] == capture.bundled("bunny")["model"].name
    assert provenance["clip"]["file"] == "bigbuckbunny.mp4"
    assert all(len(provenance[name]["sha256"]) == 64 for name in ("model", "vae", "conditioning", "clip"))
    assert (provenance["sigmas"], provenance["heads"]) == ([0.3, 0.9], [1])


def test_it_repeats(made, tmp_path):
    again = tmp_path / "again.safetensors"
    settings = ["--blocks", "4", "--heads", "1", "--sigmas", "0.9"]
    assert main(["capture", "--output", str(again), "--grid", *map(str, GRID), *settings]) == 0
    assert read(again)[0][0].sha256() == read(made)[0][3].sha256()


def test_no_token_is_a_copy_of_another(made, drawn):
    for one in (*read(made)[0], *read(drawn)[0]):
        assert one.k[0, 0].float().unique(dim=0).shape[0] == one.layout.total


@pytest.fixture(scope="module")
def drawn(comfy, tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn") / "c.safetensors"
    settings = ["--blocks", "4", "--heads", "1", "--sigmas", "0.9"]
    assert main(["capture", "--output", str(path), "--clip", "drawn", "--grid", *map(str, GRID), *settings]) == 0
    return path


def test_a_drawn_clip_needs_no_video(made, drawn):
    (one,), provenance = read(drawn)
    assert one.layout.grid == GRID and provenance["clip"] == {"file": "drawn"}
    assert one.sha256() != read(made)[0][3].sha256()


def test_the_bench_takes_it(made, tmp_path, capsys):
    rows = tmp_path / "rows.json"
    options = ["--repeats", "1", "--no-baselines", "--json", str(rows)]
    assert main(["attention", "--capture", str(made), *options]) == 0
    assert "what a trained model computed" in capsys.readouterr().out
    found = json.loads(rows.read_text("utf-8"))["rows"]
    hashes = [one.sha256() for one in read(made)[0]]
    assert [row["inputs_sha256"] for row in found] == [digest for digest in hashes for _ in PATTERNS]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--blocks", "1", "6"], r"blocks: the model has no video self-attention in \[6\]"),
        (["--heads", "2"], "heads: expected numbers below 2, found 2"),
        (["--grid", "34", "2", "2"], "expected frame 132, the clip ends before it"),
        (["--model", "m.safetensors"], "--model: expected a file"),
        (["--clip", "none.mp4"], "--clip: expected a file, found none at none.mp4"),
        (["--prompt", "unicorn"], "--prompt: expected one of .*bunny.*, found unicorn"),
        (["--vae", str(capture.bundled("bunny")["vae"])], "--conditioning: expected with --vae"),
    ],
)
def test_what_does_not_fit_is_named(comfy, tmp_path, capsys, arguments, words):
    if arguments[0] == "--model":
        arguments = [*arguments, "--vae", "v", "--conditioning", "c"]
    small = [] if "--grid" in arguments else ["--grid", "1", "2", "3"]
    assert main(["capture", "--output", str(tmp_path / "c.safetensors"), *small, *arguments]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


# The committed capture: 560 video tokens of the bundled model, head 1 of every block, in raster order.
BLOCK = 16


@pytest.fixture(scope="module")
def small():
    found, provenance = read(SMALL)
    assert provenance["model"]["file"] == capture.bundled("bunny")["model"].name
    return found


def test_the_small_capture_is_small_and_of_the_bundled_model(small):
    assert SMALL.stat().st_size < 3e6
    _, provenance = read(SMALL)
    for name, path in capture.bundled("bunny").items():
        assert provenance[name] == capture._identity(path)
    assert [one.block for one in small] == list(range(6))


def test_its_attention_is_real(small):
    """Fewer key blocks hold 90 % of the mass than of random queries and keys of one size; and layers differ."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(small[0].q.shape, generator=generator) for _ in "qk")
    random = key_block_share(q, k, block=BLOCK)
    shares = [key_block_share(one.q, one.k, block=BLOCK) for one in small]
    assert random > 0.8
    assert all(share < 0.9 * random for share in shares), (shares, random)
    assert min(shares) < 0.6 * random
    assert max(shares) - min(shares) > 0.1
