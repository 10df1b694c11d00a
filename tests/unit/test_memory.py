"""What a run remembers of its layers, branch by branch."""

import torch

from dit_accel.accel.attention.memory import Glance, LayerMemory, TensorCache

BATCH, ROWS = 4, 8


def stored() -> tuple[TensorCache, torch.Tensor]:
    cache, x = TensorCache(), torch.arange(BATCH * ROWS).view(BATCH, ROWS)
    LayerMemory(cache, ("cond", "uncond"), "call").store(x)
    return cache, x


def test_a_branch_holds_its_own_memory_alone():
    """Dropping one branch frees its half, and what the call goes on to write is not remembered."""
    cache, x = stored()
    x.zero_()
    for branch, expected in (("cond", range(16)), ("uncond", range(16, 32))):
        (entry,) = cache.get((branch, "call"))
        assert entry.untyped_storage().nbytes() == entry.nbytes == x.nbytes // 2
        assert entry.flatten().tolist() == list(expected)
    assert cache.bytes == x.nbytes


def test_branches_are_found_together_and_apart():
    cache, x = stored()
    (both,) = LayerMemory(cache, ("uncond", "cond"), "call").load()
    assert torch.equal(both, torch.cat([x[2:], x[:2]]))
    (one,) = LayerMemory(cache, ("cond",), "call").load()
    assert torch.equal(one, x[:2])
    assert LayerMemory(cache, ("cond", "other"), "call").load() is None
    assert LayerMemory(cache, (), "call").load() is None


def test_a_branch_is_forgotten_when_its_condition_comes_true():
    cache, x = stored()
    LayerMemory(cache, ("cond", "uncond"), "call").forget_if(torch.tensor([False, False, False, True]))
    assert len(cache) == 2
    cache.settle()
    assert cache.get(("uncond", "call")) is None and cache.get(("cond", "call")) is not None
    assert cache.bytes == x.nbytes // 2


def test_a_glance_changes_nothing():
    cache, x = stored()
    glance = Glance(cache, ("cond", "uncond"), "call")
    glance.store(torch.zeros_like(x))
    glance.forget_if(torch.ones(BATCH, dtype=torch.bool))
    cache.settle()
    assert torch.equal(glance.load()[0], x)
