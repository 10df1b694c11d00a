"""What newer cores do and the checkout at hand does not, by stand-ins: inputs of attention in containers in every
family, checkpoints that name a backend of their own, the model compiler's recording of allocations, block numbers
of MiniMax H3."""

import contextlib
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dit_accel.accel.attention import executor, reasons
from dit_accel.accel.comfy.sparse.override import OVERRIDE_KEY
from dit_accel.accel.headless.attention_inputs import Recorder

# One case for each place in core's code from which a family calls attention.
CALL_SITES = [
    "wan t2v",
    "wan i2v",
    "hunyuan 1",
    "cogvideox 1 t2v learned positions",
    "mochi",
    "cosmos 1",
    "cosmos predict 2 odd size",
    "kandinsky 5 lite",
    "ltx video guides",
    "ltx 2",
]


@pytest.fixture(scope="module")
def named(tiny):
    return {case.name: case for case in tiny.CASES}


@pytest.fixture
def in_containers(comfy, monkeypatch):
    """Makes every model call attention as newer cores do: q, k and v in containers that their taker empties, and with
    the layer's own backend, which counts only where no override is installed."""
    import comfy.ldm.modules.attention as core

    plain, given = core.optimized_attention, []

    def install(preferred=None):
        def attention(q, k, v, *args, **kwargs):
            parts = [core.AttentionTensorContainer(x) for x in (q, k, v)] if isinstance(q, torch.Tensor) else [q, k, v]
            given.extend(parts)
            if preferred is not None and OVERRIDE_KEY not in kwargs.get("transformer_options", {}):
                return preferred(*(part.take() for part in parts), *args, **kwargs)
            return plain(*parts, *args, **kwargs)

        for name, module in list(sys.modules.items()):
            if name.startswith("comfy.ldm.") and getattr(module, "optimized_attention", None) is plain:
                monkeypatch.setattr(module, "optimized_attention", attention)
        return given

    return install


@pytest.mark.parametrize("name", CALL_SITES)
def test_containers_change_nothing(tiny, named, in_containers, name):
    case = named[name]
    model = case.model()
    sparse = tiny.sparse(model, top_p=0.5, floor=0.0)
    expected = tiny.sample(sparse, case, steps=1)
    given = in_containers()
    assert torch.equal(tiny.sample(sparse, case, steps=1), expected)
    before, after = tiny.history(sparse)
    assert after.sparse == before.sparse == {"torch": case.calls * after.forwards}
    assert after.dense == before.dense
    assert len(given) == 3 * (after.sparse_calls + after.dense_calls)
    assert all(part.tensor is None for part in given), "a container was not taken"
    recorder = Recorder()
    tiny.sample(recorder.attach(model), case, steps=1)
    assert len(recorder.calls) == case.calls


class Backend:
    """A backend that takes containers itself, as core's node for the choice of a backend installs it."""

    def __init__(self) -> None:
        self.tensors, self.containers = 0, 0

    def __call__(self, q, k, v, heads, **kwargs):
        from comfy.ldm.modules.attention import attention_pytorch

        self.tensors += 1
        return attention_pytorch(q, k, v, heads, **kwargs)

    def container_function(self, q, k, v, heads, **kwargs):
        self.containers += 1
        self.tensors -= 1
        return self(q.take(), k.take(), v.take(), heads, **kwargs)


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_backend_that_takes_containers(tiny, named, in_containers, ours_first):
    """It gets plain tensors in a forward of ours, and the containers in one that stays dense as a whole."""
    case = named["wan t2v"]
    in_containers()
    backend, model = Backend(), case.model()
    if not ours_first:
        model.set_model_optimized_attention(backend)
    model = tiny.sparse(model, dense_first=0.5)
    if ours_first:
        model.set_model_optimized_attention(backend)
    tiny.sample(model, case, steps=4)
    (run,) = tiny.history(model)
    whole = run.dense[reasons.OUTSIDE_WINDOW]
    assert run.sparse_calls > 0 < whole
    # Of a forward left alone only the self-attention is counted; Wan has as much cross-attention.
    assert backend.containers == 2 * whole
    assert backend.tensors == run.dense_calls - whole == run.sparse_calls


@pytest.mark.parametrize("layers", [0, 2])
def test_a_checkpoint_that_names_a_backend(tiny, named, in_containers, caplog, layers):
    """Core asks that backend where no override is installed: in forwards that we leave alone. The log says so."""
    from comfy.ldm.modules.attention import attention_pytorch

    case, own = named["wan t2v"], []

    def preferred(q, k, v, heads, **kwargs):
        own.append(1)
        return attention_pytorch(q, k, v, heads, **kwargs)

    in_containers(preferred)
    model = case.model()
    for block in model.model.diffusion_model.blocks:
        block.self_attn.comfy_attention = torch.nn.Module()
        block.self_attn.comfy_attention.function = preferred if layers else None
    model = tiny.sparse(model, dense_first=0.5)
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        tiny.sample(model, case, steps=4)
    (run,) = tiny.history(model)
    assert len(own) == 2 * run.dense[reasons.OUTSIDE_WINDOW] > 0
    assert ("2 attention layers of this checkpoint name a backend" in caplog.text) == (layers == 2)


class Compiler(TorchDispatchMode):
    """Stands in for the model compiler: while a block runs, every allocation is recorded unless it is paused.

    Pausing sets a flag, so a pause within a pause would end the outer one too early. rogues: recorded allocations
    that outlived their block. blocks: bytes of each block's recorded allocations, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recording = self.paused = False
        self.pauses, self.rogues = 0, 0
        self.blocks: list[list[int]] = []
        self._alive: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.recording and not self.paused:
            known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            for x in tree_leaves(out):
                if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in known:
                    self._alive.append(StorageWeakRef(x.untyped_storage()))
                    self.blocks[-1].append(x.untyped_storage().nbytes())
        return out

    def watch(self, block: torch.nn.Module) -> None:
        block.register_forward_pre_hook(self._begin)
        block.register_forward_hook(self._end)

    def _begin(self, block, args) -> None:
        assert not self.recording
        self.recording = True
        self.blocks.append([])

    def _end(self, block, args, out) -> None:
        assert not self.paused
        self.recording = False
        self.rogues += sum(not ref.expired() for ref in self._alive) - any(
            ref.cdata == StorageWeakRef(out.untyped_storage()).cdata for ref in self._alive
        )
        self._alive.clear()

    @contextlib.contextmanager
    def pause(self, sync: bool = False):
        assert not self.paused
        self.paused = True
        self.pauses += 1
        try:
            yield
        finally:
            self.paused = False


@pytest.fixture
def compiler(comfy, monkeypatch):
    import comfy.model_prefetch

    compiler = Compiler()
    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", compiler.pause, raising=False)
    return compiler


def compiled(compiler, case):
    model = case.model()
    for block in model.model.diffusion_model.blocks:
        compiler.watch(block)
    return model


@pytest.mark.parametrize("name", ["wan t2v", "minimax h3"])
def test_nothing_of_ours_outlives_a_recorded_block(tiny, named, compiler, name):
    """And the recording is the same whatever the pattern computes for its plans, keeps, and starts from."""
    case, recordings = named[name], set()
    model = compiled(compiler, case)
    for pattern in ("svg2", "svg1", "radial"):
        compiler.blocks, compiler.pauses = [], 0
        sparse = tiny.sparse(model, pattern=pattern, top_p=0.5, floor=0.0)
        with compiler:
            tiny.sample(sparse, case, steps=3)
        (run,) = tiny.history(sparse)
        assert compiler.pauses == len(compiler.blocks) == run.sparse_calls == case.calls * run.forwards
        assert compiler.rogues == 0
        assert all(compiler.blocks)
        recordings.add(tuple(map(tuple, compiler.blocks)))
    assert len(recordings) == 1


def test_a_call_that_fails_in_a_recorded_block(tiny, named, compiler, monkeypatch):
    """Freeing the run's state is no part of the recording either."""
    case, execute, attempts = named["wan t2v"], executor.execute, []

    def fail_once(*args, **kwargs):
        attempts.append(1)
        if len(attempts) == 3:
            raise torch.OutOfMemoryError("stand-in")
        return execute(*args, **kwargs)

    monkeypatch.setattr(executor, "execute", fail_once)
    sparse = tiny.sparse(compiled(compiler, case), top_p=0.5, floor=0.0)
    with compiler:
        tiny.sample(sparse, case, steps=3)
    (run,) = tiny.history(sparse)
    assert run.dense[reasons.OUT_OF_MEMORY] == 2
    assert run.sparse_calls == 4
    assert compiler.pauses == len(attempts) + 1
    assert compiler.rogues == 0


def test_a_block_whose_code_does_not_run_is_missed(tiny, named):
    """As when core replays a block from a CUDA graph: no call of it comes by, and the run says so."""
    case = named["wan t2v"]
    model = case.model()
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 0)
    sparse = tiny.sparse(model)
    tiny.sample(sparse, case)
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == run.forwards
    assert f"only {run.forwards} of {2 * run.forwards} video self-attention calls came by" in run.line()


@pytest.mark.parametrize("skipped", [False, True])
def test_minimax_h3_with_block_numbers(tiny, named, skipped):
    """Newer cores number its blocks and describe its tokens; the number holds where another node skips a block."""
    case = named["minimax h3"]
    model = case.model()

    def numbered(index):
        def block(args, extra):
            args["transformer_options"]["block_index"] = index
            args["transformer_options"]["minimax_h3_layout"] = SimpleNamespace(segments=[])
            return {"img": args["img"]} if skipped and index == 0 else extra["original_block"](args)

        return block

    for index in range(2):
        model.set_model_patch_replace(numbered(index), "dit", "double_block", index)
    sparse = tiny.sparse(model, dense_blocks=frozenset({1}))
    tiny.sample(sparse, case)
    (run,) = tiny.history(sparse)
    assert run.dense[reasons.DENSE_BLOCK] == run.forwards
    assert run.sparse_calls == (0 if skipped else run.forwards)
    recorder = Recorder()
    tiny.sample(recorder.attach(model), case, steps=1)
    assert [block for block, *_ in recorder.calls] == ([1] if skipped else [0, 1])
