"""Attention problems of any block sizes, and dense attention in fp64 as the oracle."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from dit_accel.kernels import axis_tree, workers
from dit_accel.kernels.block_sparse_attention import Tail
from dit_accel.tests.support.interpreter import fp8_as_hardware_rounds_it  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The backend torch has no 8 bits: such a combination is no test."""

    def exists(item):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return parameters.get("backend") != "torch" or parameters.get("formats") is None

    items[:] = filter(exists, items)


@pytest.fixture(autouse=True)
def nan_in_fresh_memory():
    """What nobody writes is NaN, or the largest number of an integer type: a kernel that leaves a number out, or reads
    one that is not there, shows. Only warned of is what has no deterministic form."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def guesses_in_fp32(request, monkeypatch):
    """What the backend torch multiplies in 16 bits because it only guides a choice, in fp32: the choice is then that of
    the definition. Tests marked `guesses` see it as it is."""
    if request.node.get_closest_marker("guesses") is None:
        monkeypatch.setattr(workers, "guessing_dtype", lambda x: torch.float32)
        monkeypatch.setattr(axis_tree, "TORCH_SAMPLES", axis_tree.SAMPLES)


@dataclass
class Problem:
    """Arguments of `block_sparse_attention`, and the same masks as plain tensors."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    plan: dict
    scale: float

    def run(self, call, *, backend: str, return_lse: bool = True, **options):
        options |= {"scale": self.scale, "return_lse": return_lse, "backend": backend}
        return call(self.q, self.k, self.v, **self.plan, **options)

    def token_mask(self) -> torch.Tensor:
        """bool [B, H, Nq, Nk], built token by token from the definition of a plan."""
        keep = self.plan["keep"]
        batch, heads = keep.shape[:2]
        mask = torch.zeros(batch, heads, self.q.shape[2], self.k.shape[2], dtype=torch.bool)
        for b in range(batch):
            for h in range(heads):
                rows = blocks_of(self.plan, "query", b, h)
                columns = blocks_of(self.plan, "key", b, h)
                for i, row_tokens in enumerate(rows):
                    for j, column_tokens in enumerate(columns):
                        if keep[b, h, i, j]:
                            mask[b, h, row_tokens[:, None], column_tokens[None, :]] = True
        return mask

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention and log-sum-exp in fp64 under the token mask; nothing visible gives 0 and -inf."""
        logits = self.q.double() @ self.k.double().transpose(2, 3) * self.scale
        logits = logits.masked_fill(~self.token_mask(), -torch.inf)
        values = self.v.double()
        if "tail" in self.plan:
            keys, means, log_sizes = (x.double() for x in self.plan["tail"])
            pooled = self.q.double() @ keys.transpose(2, 3) * self.scale + log_sizes[:, :, None]
            pooled = pooled.masked_fill(self.kept_blocks(), -torch.inf)
            logits, values = torch.cat([logits, pooled], dim=3), torch.cat([values, means], dim=2)
        return logits.softmax(-1).nan_to_num(0.0) @ values, logits.logsumexp(-1)

    def kept_blocks(self) -> torch.Tensor:
        """bool [B, H, Nq, KB], row by row from the definition of a plan."""
        keep = self.plan["keep"]
        kept = torch.zeros(*keep.shape[:2], self.q.shape[2], keep.shape[3], dtype=torch.bool)
        for b in range(keep.shape[0]):
            for h in range(keep.shape[1]):
                for i, tokens in enumerate(blocks_of(self.plan, "query", b, h)):
                    kept[b, h, tokens] = keep[b, h, i]
        return kept

    def pool(self) -> Tail:
        """The mean key and value of every block, token by token."""
        keep = self.plan["keep"]
        shape = (*keep.shape[:2], keep.shape[3])
        keys, values = (torch.zeros(*shape, self.k.shape[3], dtype=self.k.dtype) for _ in range(2))
        sizes = torch.zeros(shape)
        for b in range(shape[0]):
            for h in range(shape[1]):
                for j, tokens in enumerate(blocks_of(self.plan, "key", b, h)):
                    sizes[b, h, j] = len(tokens)
                    if len(tokens):
                        keys[b, h, j] = self.k[b, h, tokens].mean(0)
                        values[b, h, j] = self.v[b, h, tokens].mean(0)
        return Tail(keys, values, sizes.log())


def blocks_of(plan: dict, side: str, b: int, h: int) -> list[torch.Tensor]:
    """The tokens of every block of one (batch, head), as the plan's arrays define them."""
    order = int(plan[f"{side}_index"][b, h])
    tokens = plan[f"{side}_tokens"][order].long()
    offsets = plan[f"{side}_offsets"][order].tolist()
    return [tokens[start:end] for start, end in pairwise(offsets)]


@pytest.fixture
def make_problem():
    """make_problem(query_sizes, key_sizes, ...): sizes are lists, one row of block sizes per order."""

    def make(
        query_sizes,
        key_sizes,
        *,
        batch=1,
        heads=2,
        dim=64,
        dtype=torch.float32,
        density=0.4,
        keep=None,
        tail=False,
        packed=False,
        unseen_keys=0,
        seed=0,
    ) -> Problem:
        random = torch.Generator().manual_seed(seed)

        def tensor(length):
            if packed:  # [B, N, H * D] seen as [B, H, N, D], as most video models hand it over
                x = torch.randn(batch, length, heads, dim, generator=random).transpose(1, 2)
            else:
                x = torch.randn(batch, heads, length, dim, generator=random)
            return x.to(dtype)

        def side(name, sizes, behind):
            sizes = torch.tensor(sizes)
            length = int(sizes[0].sum()) + behind
            offsets = torch.nn.functional.pad(sizes.cumsum(1), (1, 0)).int()
            tokens = torch.stack([torch.randperm(length, generator=random) for _ in sizes]).int()
            index = torch.randint(len(sizes), (batch, heads), generator=random).int()
            return length, {f"{name}_tokens": tokens, f"{name}_offsets": offsets, f"{name}_index": index}

        queries, query_plan = side("query", query_sizes, 0)
        keys, key_plan = side("key", key_sizes, unseen_keys)
        if keep is None:
            shape = (batch, heads, len(query_sizes[0]), len(key_sizes[0]))
            keep = torch.rand(shape, generator=random) < density
        plan = {**query_plan, **key_plan, "keep": keep}
        problem = Problem(tensor(queries), tensor(keys), tensor(keys), plan, dim**-0.5)
        if tail:
            plan["tail"] = problem.pool()
        return problem

    return make
