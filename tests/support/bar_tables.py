"""Rows as the benches write them, made up: everything measured on an H200, and every bar of speed met."""

from dit_accel.accel.attention.cost.costs import Terms
from dit_accel.tests.bench.bars import attention, growth, others

H200 = "NVIDIA H200; torch 2.11.0; dit-accel 0.1.0"
CARD = Terms(dense=3.0, sparse_16bit=2.5, sparse_8bit=2.5)
HALF, INT8_HALF, INT8_FP8 = "bfloat16", "int8 x bfloat16", "int8 x float8_e4m3fn"
SPEED = {HALF: 1.0, INT8_HALF: 1.2, INT8_FP8: 1.5}
DENSE_MS = {"sdpa flash": 300.0, "sdpa cudnn": 170.0, "sdpa efficient": 400.0, "flash-attn 3": 160.0}
DENSE_MS |= {"flash-attn 4": 165.0, "sdpa math": 9000.0, "comfy-kitchen int8": 100.0, "sageattention 1": 110.0}


def both(name, ms):
    """Two medians; the second is a little slower."""
    return {f"{name}_ms": ms, f"{name}_again_ms": ms * 1.001}


def about(tokens=75_600, heads=40, dim=128, grid=(21, 45, 80)):
    where = {"inputs": "wan.safetensors block 3", "inputs_sha256": f"{tokens}", "machine": H200, "grid": list(grid)}
    return where | {"tokens": tokens, "heads": heads, "head_dim": dim, "dtype": HALF, "valid": True, "remark": ""}


def peer(name, ms, density=1.0, error=0.001, **size):
    asked = "everything" if density == 1 else f"density {density}"
    row = {"pattern": name, "asked": asked, "asked_density": density, "formats": "", "density": density}
    return about(**size) | row | {"error": error} | both("kernel", ms)


def mine(pattern, density, formats, kernel, plan, dense=200.0, **size):
    row = about(**size) | {"pattern": pattern, "asked": f"density {density}", "asked_density": density}
    row |= {"formats": formats, "density": density, "error": 0.01 / density} | both("dense", dense)
    # At density 0.4, the highest, all of q, k and v, or half.
    part = (0.6 + density) * (1.0 if formats == HALF else 0.5)
    tensors = 3 * 2 * row["tokens"] * row["heads"] * row["head_dim"]
    return row | both("kernel", kernel) | both("plan", plan) | {"peak_bytes": int(part * tensors)}


def attention_rows(**size):
    rows = [peer(name, ms, **size) for name, ms in DENSE_MS.items()]
    for density in (0.15, 0.25, 0.4):
        rows.append(peer("sol_attn", 80.0, density, 0.03, **size))
        for pattern in attention.PATTERNS:
            for formats, speed in SPEED.items():
                rows.append(mine(pattern, density, formats, 160 * density / 0.9 / speed, 4.0, **size))
    return rows


def step(pattern, ms, **more):
    row = {"pattern": pattern, "call": "later", "asked_density": 0.25, "dense_ms": 200.0}
    return about() | row | {"steps_ms": {"clustering": ms}, "steps_again_ms": {"clustering": ms}} | more


def tables():
    """Everything measured on an H200, and every bar met."""
    lengths = (16_380, 32_760, 75_600, 118_800, 201_600)
    pairs = [(length, pattern) for length in lengths for pattern in growth.PATTERNS]
    short = [(pattern, formats) for pattern in ("svg2", "pooled") for formats in SPEED]
    first = [{"pattern": name, "seconds": 3.0, "backend": "triton", "machine": H200} for name in others.FIRST_CALLS]
    checks = [(others.GPU_TESTS, "test_a.py", 2), (others.GPU_TESTS, "test_b.py", 2), ("memcheck", "memcheck", 1)]
    checks.append(("racecheck", "racecheck", 1))
    timing = {"ms": 2.0, "again_ms": 2.1, "valid": True, "remark": "", "machine": H200}
    layer = {"out": 5120, "in": 5120, "tokens": 32_760} | timing
    picture = {"part": "decode", "variant": "f32c32", "dtype": HALF} | timing
    model = {"tokens": 75_600, "precision": "16-bit", "asked": "density 0.25", "pattern": "svg2"} | timing
    return {
        "attention": attention_rows(),
        "head64": attention_rows(tokens=32_760, heads=24, dim=64),
        "planning": [
            *(step(pattern, 6.0) for pattern in ("svg2", "svg_ear")),
            *(step(name, 9.0, clusters=994) for name in ("k-means", "k-means labels")),
            *(step(name, 20.0, clusters=994) for name in ("flash-kmeans", "flash-kmeans labels")),
        ],
        "growth": [mine(name, 0.25, HALF, 1e-9 * n * n, 1e-5 * n, tokens=n, heads=8) for n, name in pairs],
        "short": [mine(name, 0.3, formats, 1.0, 0.4, 2.0, tokens=7800, grid=(5, 30, 52)) for name, formats in short],
        "gate": [{"machine": "NVIDIA H200", "costs": CARD._asdict()}],
        "first_calls": first,
        "checks": [
            {"check": check, "what": what, "of": of, "problems": 0, "remark": "", "machine": H200}
            for check, what, of in checks
        ],
        "linear": [layer | {"path": path} for path in ("linear", "torch fp8", "torch int8", "w4a16")],
        "dcae": [picture | {"way": way, "pixels": side} for way in ("at once", "diffusers") for side in others.PIXELS],
        "forward": [
            model | {"what": what, "layers": layers} | both("dense", 300.0) | both("sparse", 150.0)
            for what, layers in (("block", 1), ("forward", 40))
        ],
    }
