"""What differs between ComfyUI versions, and the other packs that we must get along with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ..attention import reasons

T = TypeVar("T")

# Attributes by which another sparse attention marks its override, and the name to show for it.
_SPARSE_OVERRIDES = {
    "_block_sparse_attention_patch": "Model Sparse Attention (BlockSparseAttention)",
}
# Callback keys that a sparse node leaves in transformer_options, whether or not its override is on top.
_SPARSE_CALLBACKS = {
    "block_sparse_attention": "Model Sparse Attention (BlockSparseAttention)",
}


def other_sparse_attention(options: Mapping[str, Any]) -> str | None:
    """The name of another sparse attention that works in these transformer_options, or None."""
    for by_key in options.get("callbacks", {}).values():
        for key, name in _SPARSE_CALLBACKS.items():
            if by_key.get(key):
                return name
    for override in _chain(options.get("optimized_attention_override")):
        for attribute, name in _SPARSE_OVERRIDES.items():
            if getattr(override, attribute, None) is not None:
                return name
    return None


def _chain(override) -> Iterator[Any]:
    seen = set()
    while override is not None and id(override) not in seen:
        seen.add(id(override))
        yield override
        override = getattr(override, "previous", None)


def pause_malloc_graph():
    """Newer cores record the allocations of a block; ours must stay out of the recording."""
    import comfy.model_prefetch

    return getattr(comfy.model_prefetch, "pause_malloc_graph", contextlib.nullcontext)()


def raise_if_interrupted() -> None:
    """Raises where the user has stopped the run."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def layers_with_own_backend(network) -> int:
    """Attention layers for which the checkpoint names a backend, as newer cores read it.

    Core asks that backend only where no override is installed, and does not tell an override of it.
    """
    layers = (getattr(module, "comfy_attention", None) for module in network.modules())
    return sum(getattr(layer, "function", None) is not None for layer in layers)


def is_compiled(model, options: Mapping[str, Any]) -> bool:
    """torch.compile runs this BaseModel's network or parts of it: they stand in the model already, or ComfyUI's own
    wrapper puts them there for each forward."""
    if options.get("wrappers", {}).get("apply_model", {}).get("torch.compile"):
        return True
    return any("_orig_mod" in module._modules for module in model.diffusion_model.modules())


def failure_reason(error: Exception, backend: str) -> str | None:
    """Why a sparse call that raised may be computed densely instead; None for an error that must be shown.

    A kernel that cannot be compiled or launched here raises anything: Triton's own errors, the C compiler's exit
    status, a missing library; so does what a device lacks of PyTorch. The computation without us does not need it.
    """
    import comfy.model_management as management

    if isinstance(error, management.InterruptProcessingException):
        return None
    if is_out_of_memory(error):
        return reasons.OUT_OF_MEMORY
    if backend != "reference":
        first_line = str(error).strip().partition("\n")[0]
        return f"{reasons.NO_KERNEL}: {type(error).__name__}: {first_line}"
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, the device's or the host's."""
    import comfy.model_management as management

    return management.is_oom(error) or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def unless_out_of_memory(make: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """make(), or otherwise() where memory runs out in it: for what a run can do without, such as its statistics."""
    try:
        return make()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside the except block, so that the traceback no longer holds what make() had.
    return otherwise()


def diffusion_model(base_model):
    """The network inside a ComfyUI BaseModel; torch.compile wraps it and keeps the original inside."""
    return getattr(base_model.diffusion_model, "_orig_mod", base_model.diffusion_model)
