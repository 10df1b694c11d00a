"""Many small computations on the CPU's cores at once: each on one thread, several threads beside each other.

torch splits one large operation over its threads, and waits for all of them at its end. For operations of a millisecond
that costs more than it gains; workers that compute different things need not wait for each other.
"""

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch
from torch import Tensor

_local = threading.local()  # check: see interruptible; threads: what torch had before one_thread_each


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """While it lasts, `share` in this thread calls `check` between tasks; what that raises ends it."""
    before = getattr(_local, "check", None)
    _local.check = check
    try:
        yield
    finally:
        _local.check = before


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, for what a thread has once allocated it need not get again."""
    return ThreadPoolExecutor(threads, thread_name_prefix="dit-accel")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While it lasts, operations of this thread and of the workers take one thread, and `share` does not switch to and
    fro: threads that waited for torch's last operation spin for a while, on the cores that the workers need."""
    threads = torch.get_num_threads()
    if getattr(_local, "threads", None) is not None or threads == 1:
        yield
        return
    _local.threads = threads
    # A new thread takes the number that holds when its first operation runs.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _local.threads = None


def share(tasks: Iterable[Callable[[], None]]) -> None:
    """Runs all tasks, begun in their order, on as many threads as torch has. A task is forgotten when it was run, and
    what it alone refers to is freed. The first error ends it and is raised when no task runs any more."""
    waiting = deque(tasks)
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    stopped = threading.Event()

    def work(check: Callable[[], None] | None = None) -> None:
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                while not stopped.is_set():
                    if check is not None:
                        check()
                    try:
                        task = waiting.popleft()
                    except IndexError:
                        return
                    task()
                    del task
        except BaseException:
            stopped.set()
            raise

    with one_thread_each():
        helpers = min(getattr(_local, "threads", None) or 1, len(waiting)) - 1
        others = [_pool(helpers).submit(work) for _ in range(helpers)]
        try:
            work(getattr(_local, "check", None))
        finally:
            wait(others)
        for other in others:
            other.result()


def share_places(task: Callable[..., None], *numbers: Iterable[int]) -> None:
    """`share` of task(*place) for every place of the product of `numbers`."""
    share(functools.partial(task, *place) for place in itertools.product(*numbers))


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bfloat16: several times as fast as those of fp32."""
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # from PyTorch 2.11 on
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def guessing_dtype(x: Tensor) -> torch.dtype:
    """What to multiply x in where the result only guides a choice."""
    if x.device.type != "cpu":
        return x.dtype
    return torch.bfloat16 if multiplies_bf16() else torch.float32
