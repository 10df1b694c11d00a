"""Stand-ins for other people's functions: real signatures, return values and side effects, and PyTorch inside.

A call that the real function would refuse is refused here, and what it ignores is ignored. Each docstring names the
release that the signature was read from.
"""

import torch


def fa3_flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """flash_attn_interface.flash_attn_func of flash_attn_3 3.0.0: [B, N, H, D]; the output alone unless asked."""
    out = _attention_nhd(q, k, v, softmax_scale, causal)
    return (out, None) if return_attn_probs else out


def fa4_flash_attn_func(
    q,
    k,
    v,
    qv=None,
    gather_kv_indices=None,
    softmax_scale=None,
    causal=False,
    window_size=(None, None),
    learnable_sink=None,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    score_mod=None,
    score_mod_bwd=None,
    mask_mod=None,
    aux_tensors=None,
    aux_scalars=None,
    block_sparse_tensors=None,
    block_sparse_tensors_bwd=None,
    return_lse=False,
    gather_bwd_recompute_p=False,
    gather_bwd_token_chunk=None,
):
    """flash_attn.cute.flash_attn_func of flash-attn-4 4.0.0b36: [B, N, H, D]; always a pair."""
    return _attention_nhd(q, k, v, softmax_scale, causal), None


def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=True, **kwargs):
    """sageattention.sageattn of sageattention 1.0.6: takes any other name and ignores it, and subtracts the keys' mean
    from the tensor it is given."""
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        raise AssertionError("Last dim of qkv must be contiguous.")
    if smooth_k:
        k -= k.mean(dim=1 if tensor_layout == "NHD" else 2, keepdim=True)
    attend = {"HND": _attention, "NHD": _attention_nhd}[tensor_layout]
    return attend(q, k, v, sm_scale, is_causal)


def int8_attention(q, k, v, *, scale=None, attn_mask=None):
    """comfy_kitchen.int8_attention of comfy-kitchen 0.2.40: [B, H, N, D]."""
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError("the last dimension of q, k, and v must be contiguous")
    return _attention(q, k, v, scale)


def sol_attn(
    q,
    k,
    v,
    tau=1.0,
    scale=None,
    sink_blocks=None,
    sink_q=None,
    key_bias=None,
    topk_ratio=0.0,
    tail=True,
    block_len=None,
    coarse_gate=None,
    token_aug=0,
):
    """comfy_kitchen.sol_attn of comfy-kitchen 0.2.40: [B, N, H, 128]; here with every block kept."""
    if q.shape[-1] != 128:
        raise ValueError("sol_attn: q: head_dim must be 128")
    return _attention_nhd(q, k, v, scale)


def available(device=None):
    """comfy_kitchen.int8_attention_is_available and sol_attn_is_available on a machine with kernels."""
    return True


def batch_kmeans_euclid(
    x, n_clusters, max_iters=100, tol=0.0, init_centroids=None, verbose=False, *, use_heuristic=True
):
    """flash_kmeans.kmeans_triton_impl.batch_kmeans_Euclid of flash-kmeans 0.3.1: x [P, N, D]. Returns labels int32
    [P, N] of the last iteration, the centroids [P, C, D] after it, and the number of iterations."""
    centroids = init_centroids.view(x.shape[0], n_clusters, x.shape[2])
    for iteration in range(1, max_iters + 1):
        labels = euclid_assign_triton(x, centroids, x.square().sum(-1))
        members = torch.nn.functional.one_hot(labels.long(), n_clusters).float()
        sizes = members.sum(1)[..., None]
        means = members.mT @ x.float() / sizes.clamp(min=1)
        moved = means.where(sizes > 0, centroids.float()).to(x.dtype)
        settled = (moved - centroids).norm(dim=-1).max() < tol
        centroids = centroids if settled else moved
        if settled or iteration == max_iters:
            return labels, centroids, iteration


def euclid_assign_triton(
    x,
    centroids,
    x_sq,
    out=None,
    c_sq=None,
    *,
    BLOCK_N=128,  # noqa: N803
    BLOCK_K=128,  # noqa: N803
    num_warps=None,
    num_stages=None,
    config=None,
    use_heuristic=True,
):
    """flash_kmeans.assign_euclid_triton.euclid_assign_triton of flash-kmeans 0.3.1: labels int32 [P, N] of x [P, N, D]
    with squared norms x_sq [P, N]."""
    if centroids.dtype != x.dtype:
        raise AssertionError("centroids dtype mismatch")
    if x_sq.shape != x.shape[:2]:
        raise AssertionError("x_sq shape mismatch")
    x, centroids = x.float(), centroids.float()
    distances = x_sq.float()[..., None] + centroids.square().sum(-1)[:, None] - 2 * x @ centroids.mT
    return distances.clamp(min=0).argmin(-1).int()


def _attention(q, k, v, scale, causal=False):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)


def _attention_nhd(q, k, v, scale, causal=False):
    return _attention(*(x.transpose(1, 2) for x in (q, k, v)), scale, causal).transpose(1, 2)
