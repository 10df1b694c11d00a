"""Compile every kernel as its public function would launch it on another chip: `python compile_for.py sm_90`. With
`--few`, every kernel and every format of it, but not each of their combinations: for one of many Tritons.

No GPU is needed. The functions are called on small CPU tensors with a driver that names the chip and with launching
replaced by compiling, so the signatures, configurations and alignments are the real ones. Prints one JSON list:
kernel, dtype, head_dim, lse, tail, tall (whether key blocks are said to fit tall chunks), keys and values (16-bit, int8
or fp8), registers, spills (bytes of local memory a thread), shared (bytes a program), matrix (the matrix instructions
used, or none), copies (how many copies by tensor descriptor there are in the code), step (machine instructions in a
round of attention's first loop on NVIDIA's chips, else 0), bytes (loads of single bytes among them).

A program of its own because Triton's interpreter, which the other tests use, cannot be left within a process.
"""

import argparse
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from dit_accel.kernels import kmeans, registry
from dit_accel.kernels.attention_configs import FORMATS, reads_tall_chunks
from dit_accel.kernels.axis_tree import tree_order
from dit_accel.kernels.block_mean import block_mean
from dit_accel.kernels.block_sparse_attention import Tail, block_sparse_attention
from dit_accel.kernels.compensation_error import log_compensation_error
from dit_accel.kernels.group import group
from dit_accel.kernels.quantise import FP8, INT8, Formats
from dit_accel.kernels.relu_linear_attention import apply_sums, kv_sums
from dit_accel.kernels.row_attention import row_attention
from dit_accel.kernels.rowwise import quantise_rows, scale_sums
from dit_accel.kernels.top_p import select_blocks
from dit_accel.kernels.unpack_w4 import E2M1, INT4, unpack_w4

compiled = []
FP8_CHIP = re.compile("sm_(89|90|1)")  # NVIDIA chips that multiply float8_e4m3fn


class NamedChip:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, chip: str):
        if chip.startswith("sm_"):
            self.target = GPUTarget("cuda", int(chip[3:]), 32)
        else:
            self.target = GPUTarget("hip", chip, 64 if chip.startswith("gfx9") else 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


run = JITFunction.run


def compile_only(self, *args, grid, warmup, **kwargs):
    compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))


def attend(dtype: torch.dtype, dim: int, lse: bool, with_tail: bool, tall: bool, formats: Formats | None) -> None:
    """Attention with a map of its own for every head and with one for all."""
    q, k, v, order = small_call(dtype, dim)
    tokens, offsets, index = order
    for keep in (torch.ones(1, 2, 3, 3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool).expand(1, 2, 3, 3)):
        block_sparse_attention(
            q,
            k,
            v,
            query_tokens=tokens,
            query_offsets=offsets,
            query_index=index,
            key_tokens=tokens,
            key_offsets=offsets,
            key_index=index,
            key_tall_chunks=3 if tall else None,
            keep=keep,
            tail=Tail(k[:, :, :3].contiguous(), v[:, :, :3].contiguous(), torch.zeros(1, 2, 3)) if with_tail else None,
            formats=formats,
            scale=1.0,
            return_lse=lse,
            backend="triton",
        )


def small_call(dtype: torch.dtype, dim: int):
    """q, k and v, and an order; strides and addresses align as at real sizes."""
    q, k, v = (torch.zeros(1, 64, 2, dim, dtype=dtype).transpose(1, 2) for _ in range(3))
    offsets = torch.tensor([[0, 16, 32, 64]], dtype=torch.int32)
    return q, k, v, (torch.arange(64, dtype=torch.int32)[None], offsets, torch.zeros(1, 2, dtype=torch.int32))


def call_planning(dtype: torch.dtype, dim: int) -> None:
    """Each other operation of a run's attention once."""
    q, k, v, order = small_call(dtype, dim)
    centroids = k[:, :, :16].contiguous()
    kmeans.assign(q, centroids, backend="triton")
    group(torch.zeros(1, 2, 64, dtype=torch.int32), 1000, backend="triton")
    block_mean(q, *order, backend="triton")
    means = k[:, :, :3].contiguous()
    log_compensation_error(centroids, k, v, *order, means, means, scale=1.0, backend="triton")
    row_attention(q[:, :, :16], k, v, scale=1.0, backend="triton")
    call_select(1000, 0.9)


def call_select(blocks: int, top_p: float | torch.Tensor) -> None:
    scores, sizes = torch.zeros(1, 2, 16, blocks), torch.ones(1, 2, blocks, dtype=torch.int32)
    select_blocks(scores, sizes, top_p=top_p, floor=0.1, max_density=0.5, backend="triton")


def call_others(dtype: torch.dtype, dim: int) -> None:
    """What only some runs launch: for very long videos, for profiles, and for recording."""
    group(torch.zeros(1, 2, 64, dtype=torch.int32), 4000, backend="triton")
    q, k, v = (torch.zeros(1, 64, 2, dim, dtype=dtype).transpose(1, 2) for _ in range(3))
    for rows in (32, 64):
        row_attention(q[:, :, :rows], k, v, scale=1.0, backend="triton")
    for blocks, top_p in ((1000, torch.ones(2)), (16_384, 0.9), (16_384, torch.ones(2))):
        call_select(blocks, top_p)


def call_trees(dtype: torch.dtype, dim: int) -> None:
    """Trees of both block sizes, with large nodes and small ones."""
    video = torch.zeros(1, 1100, 2, dim, dtype=dtype).transpose(1, 2)
    for size in (128, 64):
        tree_order(video, torch.zeros(1, 2, dim, dim), size, backend="triton")


def call_linear(dtype: torch.dtype) -> None:
    """Each operation of 4-bit layers once."""
    unpack_all(dtype)
    for columns in (5120, 13824):
        for codes in (INT8, FP8) if FP8_CHIP.match(registry.architecture(None)) else (INT8,):
            for smooth in (None, torch.ones(columns, dtype=dtype)):
                quantise_rows(torch.zeros(2, columns, dtype=dtype), smooth, codes, backend="triton")
    steps = torch.ones(512)
    for bias in (None, steps):
        scale_sums(torch.zeros(4, 512, dtype=torch.int32), steps[:4], steps, bias, dtype, backend="triton")


def unpack_all(dtype: torch.dtype) -> None:
    """The weights that there are: SVDQuant in both grids, of several tensor scales or one, and AWQ; smoothed or not."""
    codes, smooth = torch.zeros(64, 128, dtype=torch.int8), torch.ones(256, dtype=dtype)
    wide, fine = torch.ones(4, 64, dtype=dtype), torch.ones(16, 64).to(torch.float8_e4m3fn)
    for divide in (None, smooth):
        unpack_w4(codes, wide, grid=INT4, smooth=divide, dtype=dtype, backend="triton")
        for channel_scale in (torch.ones(64), torch.ones(1)):
            options = {"channel_scale": channel_scale, "smooth": divide, "dtype": dtype}
            unpack_w4(codes, fine, grid=E2M1, **options, backend="triton")
    unpack_w4(codes, wide, grid=INT4, zero=wide, dtype=dtype, backend="triton")


def call_autoencoder(dtype: torch.dtype, dim: int) -> None:
    """Both operations of linear attention: channels first and last; and, at the published head dimension, a count of
    tokens that 16 does not divide, and columns of a wider image."""
    qkv, odd = (torch.zeros(1, 3 * dim, height, width, dtype=dtype) for height, width in ((8, 8), (5, 7)))
    inputs = [qkv, qkv.contiguous(memory_format=torch.channels_last)]
    for tokens in inputs + [odd, qkv[:, :, :, 1:]] * (dim == 32):
        sums = kv_sums(tokens, head_dim=dim, backend="triton")
        apply_sums(tokens, sums, head_dim=dim, backend="triton")


def first_loop(code: str) -> list[str]:
    """The instructions of the first loop of matrix products in cuobjdump's listing of machine code."""
    listed = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", code, re.MULTILINE)
    place = {int(address, 16): number for number, (address, _) in enumerate(listed)}
    for end, (_, instruction) in enumerate(listed):
        jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)", instruction)
        if jump is None or place.get(int(jump[1], 16), end + 1) > end:
            continue
        loop = [text for _, text in listed[place[int(jump[1], 16)] : end + 1]]
        if any(re.search(r"\b[A-Z]*MMA\b", text) for text in loop):
            return loop
    return []


MATRIX = r"(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma|v_wmma)\S*"
FORMAT_NAMES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8", None: "16-bit"}


def resources(kernel, listing: bool) -> dict[str, int | str]:
    """What a row says of a compiled kernel, from the machine code where it says so; listing: whether that is searched
    for a loop."""
    loop: list[str] = []
    matrix = sorted(set(re.findall(MATRIX, kernel.asm.get("ptx") or kernel.asm["amdgcn"])))
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers = max(map(int, re.findall(r"\.vgpr_count:\s*(\d+)", text)))
        spills = max(map(int, re.findall(r"\.private_segment_fixed_size:\s*(\d+)", text)))
    else:
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(kernel.asm["cubin"])
            wanted = ["-res-usage", "-sass"] if kernel.name == "_attend" and listing else ["-res-usage"]
            text = subprocess.run([tool, *wanted, file.name], capture_output=True, text=True, check=True).stdout
        loop = first_loop(text)
        registers = int(re.search(r"REG:(\d+)", text)[1])
        spills = int(re.search(r"STACK:(\d+)", text)[1]) + int(re.search(r"LOCAL:(\d+)", text)[1])
    return {
        "registers": registers,
        "spills": spills,
        "shared": kernel.metadata.shared,
        "matrix": " ".join(matrix) or "none",
        "copies": kernel.asm.get("ptx", "").count("cp.async.bulk.tensor"),
        "step": len(loop),
        "bytes": sum(bool(re.search(r"\bLDG\S*\.[US]8\b", text)) for text in loop),
    }


def compile_as(chip: str) -> None:
    """From here on, launching a kernel compiles it for `chip` and appends what came out to `compiled`."""
    driver.set_active(NamedChip(chip))
    # Before 3.5 Triton links with ROCm's linker, which a machine without ROCm lacks. Only the assembly is read here.
    os.environ.setdefault("TRITON_HIP_LLD_PATH", shutil.which("true"))
    registry.architecture = lambda device: chip
    JITFunction.run = compile_only


def call_all(chip: str) -> Iterator[dict[str, object]]:
    """Every kernel in all combinations, but for 8 bits of fp16 at head dimension 64, minutes for nothing new; yields
    what those have in common that have just been compiled."""
    heights = (False, True) if reads_tall_chunks(chip) else (False,)
    for dtype, dim in itertools.product(registry.HALF, (64, 128)):
        variants = [(lse, tail, None) for lse, tail in ((False, False), (True, False), (False, True))]
        if (dtype, dim) != (torch.float16, 64):
            variants += [
                (False, tail, formats) for formats in registry.nearest(FORMATS, chip) for tail in (False, True)
            ]
        for (lse, tail, formats), tall in itertools.product(variants, heights):
            attend(dtype, dim, lse, tail, tall, formats)
            yield describe(dtype, dim, lse, tail, tall, formats)
        for call in (call_planning, call_trees, call_others):
            call(dtype, dim)
        yield describe(dtype, dim)
        call_linear(dtype)
        yield describe(dtype, dim)
    for dtype, dim in itertools.product(registry.FLOATS, (16, 32)):
        call_autoencoder(dtype, dim)
        yield describe(dtype, dim)


def call_few(chip: str) -> Iterator[dict[str, object]]:
    """Every kernel, attention at every format."""
    heights = (False, True) if reads_tall_chunks(chip) else (False,)
    for formats, tall in itertools.product((None, *registry.nearest(FORMATS, chip)), heights):
        attend(torch.bfloat16, 128, formats is None, True, tall, formats)
        yield describe(torch.bfloat16, 128, formats is None, True, tall, formats)
    for operation, backends in registry.REQUIREMENTS.items():
        needs = backends["triton"]
        dtype, dim = (needs.dtypes or registry.HALF)[-1], (needs.head_dims or (None,))[-1]
        importlib.import_module(f"dit_accel.kernels.{operation}").trial(torch.device("cpu"), dtype, dim)
        yield describe(dtype, dim or 0)


def describe(dtype: torch.dtype, dim: int, lse=False, tail=False, tall=False, formats=None) -> dict[str, object]:
    """The beginning of a row."""
    keys, values = (FORMAT_NAMES[name] for name in formats or (None, None))
    row = {"dtype": str(dtype)[6:], "head_dim": dim, "lse": lse, "tail": tail, "tall": tall}
    return row | {"keys": keys, "values": values}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("chip")
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    compile_as(options.chip)
    rows: dict[str, dict] = {}
    for description in (call_few if options.few else call_all)(options.chip):
        # Few kernels depend on all of what was called; the others come again, with the same hash.
        for kernel in compiled:
            if kernel.hash not in rows:
                rows[kernel.hash] = {"kernel": kernel.name} | description | resources(kernel, listing=not options.few)
        compiled.clear()
    print(json.dumps(list(rows.values())))
