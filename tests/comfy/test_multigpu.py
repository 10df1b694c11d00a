"""ComfyUI's MultiGPU node before and after our node: its scheduler, clones and worker threads with two devices, both of
which are this machine's processor."""

import logging
import threading
import time
from collections import Counter

import pytest
import torch

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.account.forward_statistics import ForwardStatistics
from dit_accel.accel.attention.memory import TensorCache
from dit_accel.tests.support.closeness import NETWORK, assert_close
from dit_accel.tests.support.forwards import make_run

LAYERS, STEPS = 2, 3


@pytest.fixture
def split(comfy, monkeypatch, model, case):
    """The MultiGPU node for a model with two devices. Both are the processor, and only their names differ."""
    import comfy.model_management
    from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode

    def two_devices(exclude_current=False):
        return [torch.device("cpu"), torch.device("cpu", 0)]

    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", two_devices)
    # The weights of the second device are loaded anew, as by a loader.
    monkeypatch.setattr(model, "cached_patcher_init", (case.model, ()))
    return lambda patcher: MultiGPUCFGSplitNode.execute(patcher, 2).result[0]


@pytest.fixture
def workers(monkeypatch):
    """Sparse calls by the thread that ran them."""
    seen = Counter()
    execute = executor.execute

    def spy(*args, **kwargs):
        seen[threading.get_ident()] += 1
        return execute(*args, **kwargs)

    monkeypatch.setattr(executor, "execute", spy)
    return seen


@pytest.mark.parametrize("ours_first", [True, False])
def test_each_prompt_on_its_device(tiny, case, model, split, workers, ours_first, caplog):
    both = split(tiny.sparse(model)) if ours_first else tiny.sparse(split(model))
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        found = tiny.sample(both, case, steps=STEPS)
        expected = tiny.sample(model, case, steps=STEPS)
    assert_close(found, expected, units=NETWORK)
    assert sorted(workers.values()) == [STEPS * LAYERS] * 2
    assert threading.get_ident() not in workers
    (run,) = tiny.history(both)
    assert (run.forwards, run.sparse_calls, run.expected) == (2 * STEPS, 2 * STEPS * LAYERS, 2 * STEPS * LAYERS)
    assert "no effect" not in caplog.text


def test_devices_do_not_mix_state(tiny, case, model, half, split, monkeypatch):
    """Two prompts at once give what they give one after the other, and each keeps its own clusters."""
    kept = set()
    put = TensorCache.put
    monkeypatch.setattr(TensorCache, "put", lambda self, key, entry: (kept.add(key), put(self, key, entry))[1])
    at_once = split(half)
    results = [tiny.sample(at_once, case, steps=STEPS) for _ in range(2)]
    assert torch.equal(*results)
    branches = Counter(branch for branch, _ in kept)
    assert sorted(branches.values()) == [LAYERS] * len(branches) and len(branches) == 2 * 2

    monkeypatch.setattr(type(half), "get_free_memory", lambda *_: 0)  # one prompt per evaluation
    assert_close(tiny.sample(half, case, steps=STEPS), results[0], units=NETWORK)
    first, _, last = tiny.history(half)
    assert first.density == pytest.approx(last.density)
    assert first.density < 0.95


class Slow(Counter):
    """Takes long enough to add that other threads come in between, where they can."""

    def __iadd__(self, other):
        total = self + other
        time.sleep(1e-4)
        self.clear()
        self.update(total)
        return self


def test_counters_of_threads_add_up():
    run, threads, forwards = make_run(), 4, 25
    run._sparse = Slow()

    def work():
        for _ in range(forwards):
            run.add(ForwardStatistics(sparse=Counter(reference=1), dense=Counter(mask=2), expected=3))

    pool = [threading.Thread(target=work) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    summary, total = run.close(), threads * forwards
    assert (summary.forwards, summary.expected) == (total, 3 * total)
    assert (summary.sparse, summary.dense) == ({"reference": total}, {"mask": 2 * total})
