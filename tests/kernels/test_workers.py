"""Tasks shared out to threads."""

import threading
import time

import pytest
import torch

from dit_accel.kernels import workers


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_task_runs_once_on_one_thread_each(threads):
    seen, names = [], set()

    def task(number):
        assert torch.get_num_threads() == 1 or threads == 1
        time.sleep(0.01)
        seen.append(number)
        names.add(threading.current_thread().name)

    workers.share((lambda number=number: task(number)) for number in range(40))
    assert sorted(seen) == list(range(40))
    assert len(names) == threads and torch.get_num_threads() == threads


def test_no_task_at_all(threads):
    workers.share([])
    assert torch.get_num_threads() == threads


def test_tasks_share_the_modes_of_their_caller(threads):
    modes = []

    def task():
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        time.sleep(0.005)

    with torch.inference_mode():
        workers.share([task] * 8)
    with torch.no_grad():
        workers.share([task] * 8)
    workers.share([task] * 8)
    assert modes == [(True, False)] * 8 + [(False, False)] * 8 + [(False, True)] * 8


def test_an_error_ends_it(threads):
    ran = []

    def fails():
        raise ValueError("broken")

    def runs():
        time.sleep(0.005)
        ran.append(1)

    with pytest.raises(ValueError, match="broken"):
        workers.share([runs, fails, *[runs] * 100])
    assert len(ran) <= 2 * threads and torch.get_num_threads() == threads
    workers.share([runs])  # the threads are there for the next one


def test_it_can_be_interrupted_between_tasks(threads):
    begun = time.monotonic()

    def check():
        if time.monotonic() > begun + 0.05:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), workers.interruptible(check):
        workers.share([lambda: time.sleep(0.01)] * 10_000)
    assert time.monotonic() < begun + 5 and torch.get_num_threads() == threads
    workers.share([lambda: None] * 3)  # `check` is no longer asked


def test_a_task_that_ran_is_forgotten(threads):
    class Large:
        alive = 0

        def __init__(self):
            Large.alive += 1

        def __del__(self):
            Large.alive -= 1

        def work(self):
            most.append(Large.alive)

    most = []
    workers.share(Large().work for _ in range(20))
    assert most[-1] <= threads and Large.alive == 0


def test_threads_are_set_once_for_several_shares(threads, monkeypatch):
    counts, set_num_threads = [], torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: counts.append(count) or set_num_threads(count))
    with workers.one_thread_each():
        for _ in range(3):
            workers.share([lambda: None] * 5)
    assert counts == ([] if threads == 1 else [1, threads])
