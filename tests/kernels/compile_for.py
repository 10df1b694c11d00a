"""Compile every kernel as its public function would launch it on another chip: `python compile_for.py sm_90`.

No GPU is needed. The functions are called on small CPU tensors with a driver that names the chip and with launching
replaced by compiling, so the signatures, configurations and alignments are the real ones. Prints one JSON list:
kernel, dtype, head_dim, lse, tail, keys and values (16-bit, int8 or fp8), registers, spills (bytes of local memory a
thread), shared (bytes a program), matrix (the matrix instructions used, or none).

A program of its own because Triton's interpreter, which the other tests use, cannot be left within a process.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from dit_accel.kernels import kmeans, registry
from dit_accel.kernels.attention_configs import FORMATS
from dit_accel.kernels.block_mean import block_mean
from dit_accel.kernels.block_sparse_attention import Tail, block_sparse_attention
from dit_accel.kernels.compensation_error import log_compensation_error
from dit_accel.kernels.group import group
from dit_accel.kernels.quantise import Formats
from dit_accel.kernels.top_p import select_blocks

compiled = []


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


def compile_only(self, *args, grid, warmup, **kwargs):
    compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))


def call_everything(dtype: torch.dtype, dim: int, lse: bool, with_tail: bool, formats: Formats | None) -> None:
    """Each operation once; sizes at which strides and addresses align as they do at real ones."""
    q, k, v = (torch.zeros(1, 64, 2, dim, dtype=dtype).transpose(1, 2) for _ in range(3))
    tokens = torch.arange(64, dtype=torch.int32)[None]
    offsets = torch.tensor([[0, 16, 32, 64]], dtype=torch.int32)
    index = torch.zeros(1, 2, dtype=torch.int32)
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
        keep=torch.ones(1, 2, 3, 3, dtype=torch.bool),
        tail=Tail(k[:, :, :3].contiguous(), v[:, :, :3].contiguous(), torch.zeros(1, 2, 3)) if with_tail else None,
        formats=formats,
        scale=1.0,
        return_lse=lse,
        backend="triton",
    )
    centroids = k[:, :, :16].contiguous()
    kmeans.assign(q, centroids, backend="triton")
    for clusters in (1000, 4000):
        group(torch.zeros(1, 2, 64, dtype=torch.int32), clusters, backend="triton")
    block_mean(q, tokens, offsets, index, backend="triton")
    means = k[:, :, :3].contiguous()
    log_compensation_error(centroids, k, v, tokens, offsets, index, means, means, scale=1.0, backend="triton")
    for blocks in (1000, 16_384):
        scores, sizes = torch.zeros(1, 2, 16, blocks), torch.ones(1, 2, blocks, dtype=torch.int32)
        select_blocks(scores, sizes, top_p=0.9, floor=0.1, max_density=0.5, backend="triton")


MATRIX = r"(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma|v_wmma)\S*"
FORMAT_NAMES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8", None: "16-bit"}


def resources(kernel) -> dict[str, int | str]:
    """Registers, spilled bytes, shared memory and matrix instructions, from the machine code where it says so."""
    matrix = sorted(set(re.findall(MATRIX, kernel.asm.get("ptx") or kernel.asm["amdgcn"])))
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers = max(map(int, re.findall(r"\.vgpr_count:\s*(\d+)", text)))
        spills = max(map(int, re.findall(r"\.private_segment_fixed_size:\s*(\d+)", text)))
    else:
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(kernel.asm["cubin"])
            text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers = int(re.search(r"REG:(\d+)", text)[1])
        spills = int(re.search(r"STACK:(\d+)", text)[1]) + int(re.search(r"LOCAL:(\d+)", text)[1])
    return {
        "registers": registers,
        "spills": spills,
        "shared": kernel.metadata.shared,
        "matrix": " ".join(matrix) or "none",
    }


if __name__ == "__main__":
    chip = sys.argv[1]
    driver.set_active(NamedChip(chip))
    registry.architecture = lambda device: chip
    run, JITFunction.run = JITFunction.run, compile_only
    rows = {}
    for dtype in (torch.float16, torch.bfloat16):
        for dim in (64, 128):
            variants = [(lse, tail, None) for lse, tail in ((False, False), (True, False), (False, True))]
            variants += [
                (False, tail, formats) for formats in registry.nearest(FORMATS, chip) for tail in (False, True)
            ]
            for lse, tail, formats in variants:
                compiled.clear()
                call_everything(dtype, dim, lse, tail, formats)
                keys, values = (FORMAT_NAMES[name] for name in formats or (None, None))
                for kernel in compiled:
                    row = {"kernel": kernel.name, "dtype": str(dtype)[6:], "head_dim": dim, "lse": lse, "tail": tail}
                    row |= {"keys": keys, "values": values}
                    # Few kernels depend on all of these; the others come again, with the same hash.
                    rows.setdefault(kernel.hash, row | resources(kernel))
    print(json.dumps(list(rows.values())))
