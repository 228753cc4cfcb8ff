"""The compiled kernels share the machine: threads, forked and spawned processes."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch

from segresmamba.ops import selective_scan
from segresmamba.ops.cpu.threads import run, shares
from tests.ops.operands import scan_operands


def _scan(operands):
    return selective_scan(**operands, backend="cpu").detach()


def _scan_in_child(operands, threads, queue):
    torch.set_num_threads(threads)
    queue.put(_scan(operands).numpy())


@pytest.fixture
def operands():
    """More than one block of channels, so that there is work for two threads."""
    return {name: t.detach() for name, t in scan_operands(channels=40).items()}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("threads", [1, 2])
def test_child_processes_scan_after_their_parent_did(two_threads, operands, method, threads):
    expected = _scan(operands)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_scan_in_child, args=(operands, threads, queue))
    child.start()
    received = torch.from_numpy(queue.get(timeout=600))
    child.join(timeout=200)
    assert child.exitcode == 0
    assert torch.equal(received, expected)


class _Scans(torch.utils.data.Dataset):
    """Scans in the loader's worker, and how many threads it may use there."""

    def __init__(self, operands):
        self.operands = operands

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return _scan(self.operands), torch.get_num_threads()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_data_loader_workers_scan_beside_their_parent(two_threads, operands):
    expected = _scan(operands)
    loader = torch.utils.data.DataLoader(_Scans(operands), batch_size=None, num_workers=2)
    for received, threads in loader:
        assert threads == 1
        assert torch.equal(received, expected)
        assert torch.equal(_scan(operands), expected)


def test_python_threads_scan_at_the_same_time(two_threads, operands):
    expected, received = _scan(operands), []
    threads = [threading.Thread(target=lambda: received.append(_scan(operands))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(received) == 4
    assert all(torch.equal(y, expected) for y in received)


def test_torch_decides_at_each_call_how_many_threads_run(two_threads):
    assert shares(5) == [(0, 2), (2, 5)]
    assert shares(1) == [(0, 1)]
    assert shares(0) == [(0, 0)]
    torch.set_num_threads(1)
    assert shares(5) == [(0, 5)]


def test_one_share_runs_in_the_calling_thread():
    ran = []
    run(lambda number, start, stop: ran.append((threading.current_thread(), start, stop)), [(0, 3)])
    assert ran == [(threading.current_thread(), 0, 3)]


def test_errors_of_a_thread_reach_the_caller():
    def work(number, start, stop):
        if number == 0:
            raise RuntimeError("in a thread")

    with pytest.raises(RuntimeError, match="in a thread"):
        run(work, [(0, 1), (1, 2)])
