"""Dense attention under the token mask that a plan means, read from its arrays token by token."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dit_accel.accel.attention.plan import BlockOrder, SparsePlan


def members(order: BlockOrder, b: int, h: int) -> list[Tensor]:
    """The tokens of every block of one (batch row, head)."""
    row = int(order.index[b, h])
    ends = order.offsets[row].tolist()
    return [order.tokens[row, start:end].long() for start, end in pairwise(ends)]


def token_mask(plan: SparsePlan, length: int) -> Tensor:
    """bool [B, H, N, N]."""
    batch, heads = plan.keep.shape[:2]
    mask = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            columns = members(plan.keys, b, h)
            for i, rows in enumerate(members(plan.queries, b, h)):
                kept = [columns[j] for j in plan.keep[b, h, i].nonzero().flatten().tolist()]
                mask[b, h, rows[:, None], torch.cat([*kept, torch.zeros(0, dtype=torch.int64)])] = True
    return mask


def attention_of_plan(q: Tensor, k: Tensor, v: Tensor, plan: SparsePlan, scale: float) -> Tensor:
    """fp64 [B, H, N, D]: every query sees its kept tokens, and with a tail one mean for each block that it does not
    keep."""
    q, k, v = q.double(), k.double(), v.double()
    logits = (q @ k.transpose(2, 3) * scale).masked_fill(~token_mask(plan, q.shape[2]), -torch.inf)
    if plan.tail is None:
        return logits.softmax(-1) @ v
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            columns = members(plan.keys, b, h)
            for i, rows in enumerate(members(plan.queries, b, h)):
                skipped = [columns[j] for j in (~plan.keep[b, h, i]).nonzero().flatten().tolist() if len(columns[j])]
                parts, values = [logits[b, h, rows]], [v[b, h]]
                for tokens in skipped:
                    score = q[b, h, rows] @ k[b, h, tokens].mean(0) * scale
                    parts.append((score + torch.tensor(float(len(tokens))).log())[:, None])
                    values.append(v[b, h, tokens].mean(0, keepdim=True))
                out[b, h, rows] = torch.cat(parts, 1).softmax(-1) @ torch.cat(values)
    return out
