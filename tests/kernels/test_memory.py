"""Recycled memory: not while a tensor can see it, again afterwards, given back at last."""

import gc
import threading

import pytest
import torch

from inrun_kernels import memory

CPU = torch.device("cpu")
NUMBERS = memory.SMALLEST // 4


@pytest.fixture
def recycler(monkeypatch):
    fresh = memory.Recycler()
    monkeypatch.setattr(memory, "RECYCLER", fresh)
    return fresh


def test_memory_is_used_again_when_its_last_tensor_is_gone(recycler):
    first = memory.empty((NUMBERS,), torch.float32, CPU)
    place, view = first.data_ptr(), first.view(2, -1)[1]
    del first
    assert memory.empty((NUMBERS,), torch.float32, CPU).data_ptr() != place, "a view is still there"
    del view
    again = memory.empty((2, NUMBERS), torch.bfloat16, CPU)
    assert again.data_ptr() == place
    assert again.shape == (2, NUMBERS)
    assert again.is_contiguous()
    assert again._base is None


def test_tensors_that_live_together_never_share_memory(recycler):
    tensors = []
    for number in range(8):
        tensors.append(memory.empty((NUMBERS + number,), torch.float32, CPU).fill_(number))
        if number % 3 == 2:
            del tensors[0]
    for t in tensors:
        assert (t == t[0]).all()
    assert len({float(t[0]) for t in tensors}) == len(tensors)


def test_what_autograd_saves_is_not_overwritten(recycler):
    w = torch.ones(NUMBERS, requires_grad=True)
    x = memory.empty((NUMBERS,), torch.float32, CPU).fill_(3.0)
    loss = (w * x).sum()
    del x
    memory.empty((NUMBERS,), torch.float32, CPU).fill_(7.0)
    loss.backward()
    assert (w.grad == 3.0).all()


def test_threads_get_memory_of_their_own(recycler):
    wrong = []

    def work(number):
        for _ in range(20):
            t = memory.empty((NUMBERS,), torch.float32, CPU).fill_(number)
            if not bool((t == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_idle_memory_is_given_back(recycler, monkeypatch):
    monkeypatch.setattr(memory, "PATIENCE", 3)
    memory.empty((16 * NUMBERS,), torch.float32, CPU)
    for number in range(8):
        memory.empty((NUMBERS + 4096 * number,), torch.float32, CPU)
    gc.collect()
    assert max(recycler.sizes()) < 16 * memory.SMALLEST


def test_release_gives_back_what_is_idle_and_nothing_else(recycler):
    kept = memory.empty((NUMBERS,), torch.float32, CPU).fill_(1.0)
    memory.empty((NUMBERS,), torch.float32, CPU)
    memory.release()
    assert len(recycler.sizes()) == 1
    assert (kept == 1.0).all()


def test_small_tensors_are_left_to_torch(recycler):
    memory.empty((NUMBERS - 1,), torch.float32, CPU)
    assert not recycler.sizes()
