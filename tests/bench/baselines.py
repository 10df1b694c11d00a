"""Other people's attention beside ours: dense and sparse, or the exact reason why one cannot run here."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_accel.accel.bench.case import Case
from dit_accel.accel.bench.pattern_row import Planned, verdict
from dit_accel.accel.bench.sweep import Peers, Target
from dit_accel.accel.bench.timing import peak_bytes, timed
from dit_accel.tests.bench import flex, quality


class Unavailable(Exception):  # noqa: N818
    """Why a baseline cannot run on this machine or on these tensors, in one sentence."""


class Ready(NamedTuple):
    """run: the attention, on tensors laid out as it likes them best; finish brings its result to [B, H, N, D]. What
    both leave out (layouts, masks) is set-up and not timed, to the peer's advantage. formats: what is multiplied."""

    run: Callable[[], Tensor]
    finish: Callable[[Tensor], Tensor]
    formats: str
    version: str
    density: float = 1.0


def sdpa(backend: SDPBackend) -> Callable[[Case], Ready]:
    """torch's scaled_dot_product_attention, this backend and no other."""

    def make(case: Case) -> Ready:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(case.q, case.k, case.v, scale=case.scale)

        return Ready(run, _as_it_is, case.dtype, f"torch {torch.__version__}")

    return make


def flash(module: str, distribution: str) -> Callable[[Case], Ready]:
    """flash_attn_func of `module`: FlashAttention 3 or 4, which take 16-bit [B, N, H, D]. 4 returns a pair whose second
    half is None, as 3 did before its release 3.0.0 (there with the log-sum-exp); 3 now returns the output alone."""

    def make(case: Case) -> Ready:
        function = _import(module, distribution).flash_attn_func
        _need_gpu(case)
        q, k, v = (x.transpose(1, 2).contiguous() for x in (case.q, case.k, case.v))

        def run() -> Tensor:
            out = function(q, k, v, softmax_scale=case.scale)
            return out[0] if isinstance(out, tuple) else out

        return Ready(run, _transposed, case.dtype, version_of(distribution))

    return make


def comfy_kitchen_int8(case: Case) -> Ready:
    """int8_attention of comfy-kitchen: signed INT8 queries, keys and values, unsigned INT8 weights."""
    kitchen = _import("comfy_kitchen", "comfy-kitchen")
    version = version_of("comfy-kitchen")
    if not hasattr(kitchen, "int8_attention"):
        raise Unavailable(f"{version} has no int8_attention")
    if not kitchen.int8_attention_is_available(case.device):
        raise Unavailable(f"the int8_attention of {version} has no kernel for this device")
    q, k, v = (x.contiguous() for x in (case.q, case.k, case.v))
    return Ready(lambda: kitchen.int8_attention(q, k, v, scale=case.scale), _as_it_is, "int8 x int8", version)


def sage(case: Case) -> Ready:
    """sageattn of SageAttention 1 (arXiv 2410.02367), in Triton: INT8 queries and keys, fp16 values, of which each
    block of 64 is added up in fp16."""
    function = _import("sageattention", "sageattention").sageattn
    version = version_of("sageattention")
    if not version.startswith("sageattention 1."):
        raise Unavailable(f"expected sageattention 1, found {version}")
    _need_gpu(case)
    # It subtracts the keys' mean from the tensor it is given: without a copy, from the keys of every row after this.
    q, k, v = case.q.contiguous(), case.k.clone(), case.v.contiguous()
    return Ready(
        lambda: function(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=case.scale),
        _as_it_is,
        "int8 x float16",
        version,
    )


def sol_attn(case: Case, density: float | None) -> Ready:
    """comfy-kitchen's sol_attn at the tau that gives the density, with its tail, in the tokens' own order.

    Its kernels round queries, keys and values to INT8 and weights to unsigned INT8, the pooled scores that choose the
    blocks too; the density is that of the rule without such rounding."""
    if reason := quality.sol_attn_problem(case.q.shape[-1]):
        raise Unavailable(reason)
    kitchen = _import("comfy_kitchen", "comfy-kitchen")
    version = version_of("comfy-kitchen")
    if density is None:
        raise Unavailable("its dial is set by the density, and none was asked for")
    if not kitchen.sol_attn_is_available(case.device):
        raise Unavailable(f"the sol_attn of {version} has no kernel for this device")
    tau = quality.sol_tau(case.q, case.k, density)
    if tau is None:
        raise Unavailable(f"its blocks of {quality.SOL_BLOCK} tokens cannot give a density of {density}")
    q, k, v = (x.transpose(1, 2).contiguous() for x in (case.q, case.k, case.v))
    return Ready(
        lambda: kitchen.sol_attn(q, k, v, tau=tau, scale=case.scale),
        _transposed,
        "int8 x int8",
        version,
        quality.sol_density(case.q, case.k, tau),
    )


def flex_attention(planned: Planned) -> Ready:
    """PyTorch's compiled FlexAttention with the block mask of a plan and without its tail, on tokens that lie in the
    plan's order."""
    from torch.nn.attention.flex_attention import flex_attention as attend

    case, plan = planned.case, planned.plan
    try:
        (q, k, v), mask, options, finish = flex.prepare(case.q, case.k, case.v, plan)
    except ValueError as error:
        raise Unavailable(str(error)) from error
    _need_gpu(case)
    # Every mask is a function of its own: without this, the eighth would run uncompiled.
    torch._dynamo.reset()
    compiled = torch.compile(attend, dynamic=False)
    return Ready(
        lambda: compiled(q, k, v, block_mask=mask, scale=case.scale, kernel_options=options),
        finish,
        case.dtype,
        f"torch {torch.__version__}",
        plan.density().item(),
    )


DENSE: dict[str, Callable[[Case], Ready]] = {
    "sdpa flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa math": sdpa(SDPBackend.MATH),
    "flash-attn 3": flash("flash_attn_interface", "flash-attn-3"),
    "flash-attn 4": flash("flash_attn.cute", "flash-attn-4"),
    "comfy-kitchen int8": comfy_kitchen_int8,
    "sageattention 1": sage,
}


def measure_baseline(
    case: Case, name: str, make: Callable[[], Ready], target: str = "everything", target_density: float | None = None
) -> dict[str, Any]:
    """One row of a baseline, as `attention.measure` makes them, or one that says why there is none."""
    row = {**case.about(), "pattern": name, "asked": target, "asked_density": target_density, "backend": None}
    with warnings.catch_warnings(record=True) as caught:
        # torch says in warnings why it does not take a backend.
        warnings.simplefilter("always")
        try:
            return row | _measured(case, make(), target_density)
        except Unavailable as problem:
            reason = str(problem)
        # Other people's code refuses with whatever its libraries raise.
        except Exception as error:
            hints = [str(warning.message).partition(" (Triggered internally")[0] for warning in caught]
            reason = " ".join([f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", *dict.fromkeys(hints)])
    if case.device.type == "cuda":
        torch.cuda.empty_cache()
    return row | {"valid": False, "remark": f"skipped: {reason}"}


def _measured(case: Case, ready: Ready, target_density: float | None) -> dict[str, Any]:
    out, ms, again_ms = timed(ready.run, case.repeats, case.device)
    row = {
        "formats": ready.formats,
        "version": ready.version,
        "density": ready.density,
        "asked_density": target_density,
        "sparse_share": 1.0,
        "error": case.error(ready.finish(out)),
        "kernel_ms": ms,
        "kernel_again_ms": again_ms,
        "useful_flops": case.useful_flops(ready.density, ms),
        "peak_bytes": peak_bytes(ready.run, case.device),
    }
    return row | verdict(row)


def _dense_row(name: str, case: Case) -> dict[str, Any]:
    return measure_baseline(case, name, partial(DENSE[name], case))


def _sol_attn_row(case: Case, target: Target) -> dict[str, Any]:
    return measure_baseline(case, "sol_attn", partial(sol_attn, case, target.density), target.words, target.density)


def _flex_attention_row(planned: Planned, target: Target, name: str) -> dict[str, Any]:
    return measure_baseline(planned.case, name, partial(flex_attention, planned), target.words, target.density)


def _import(module: str, distribution: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    # A broken installation raises whatever its libraries do.
    except Exception as error:
        raise Unavailable(f"{distribution} cannot be imported ({error})") from error


def version_of(distribution: str) -> str:
    """Name and version of an installed distribution, in words."""
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} of unknown version"


def _need_gpu(case: Case) -> None:
    if case.device.type != "cuda":
        raise Unavailable(f"needs a GPU, the tensors are on the {case.device.type}")


def _transposed(out: Tensor) -> Tensor:
    return out.transpose(1, 2)


def _as_it_is(out: Tensor) -> Tensor:
    return out


PEERS = Peers(
    dense={name: partial(_dense_row, name) for name in DENSE},
    sparse={"sol_attn": _sol_attn_row},
    planned={"flex_attention": _flex_attention_row},
)
