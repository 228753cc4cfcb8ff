from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from segresmamba.config import DataConfig
from segresmamba.data import Batch, PatchSampler, make_loader, open_dataset, prepare_readers
from segresmamba.data.store import layout
from segresmamba.data.stream import loader
from segresmamba.data.stream.batch import PADDING
from segresmamba.data.stream.loader import _Reader
from segresmamba.errors import DamagedCaseError, DataError
from tests.data.server import failing_server

PATCH = (32, 32, 32)


def batches(store: Path, **changes: Any) -> Iterator[Batch]:
    settings: dict[str, Any] = {
        "seed": 0, "rank": 0, "world_size": 1, "micro_batch": 2, "start_index": 0
    }  # fmt: skip
    most = changes.pop("max_bad_cases", None)
    config = DataConfig(
        store=str(store),
        patch=changes.pop("patch", PATCH),
        workers=changes.pop("workers", 0),
        max_bad_cases=most,
    )
    dataset = open_dataset(store)
    return make_loader(dataset, dataset.case_ids, config, **(settings | changes))


def assert_same(one: Batch, other: Batch) -> None:
    assert one.case_ids == other.case_ids
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, getattr(other, name), rtol=0, atol=0)


def test_a_batch_holds_the_crops_that_the_sampler_locates(sound_store: Path) -> None:
    dataset = open_dataset(sound_store)
    sampler = PatchSampler(dataset, dataset.case_ids, PATCH, 0, 1 / 3)
    batch = next(batches(sound_store, start_index=4))
    assert batch.index_B.tolist() == [4, 5]
    assert batch.image_BCDHW.shape == (2, 2, *PATCH)
    assert batch.image_BCDHW.dtype == batch.normalisation_BC4.dtype == torch.float32
    assert batch.label_BDHW.dtype == torch.uint8
    for place, index in enumerate((4, 5)):
        case_id, start = sampler.locate(index)
        image, label = dataset[case_id].crop(start, PATCH)
        assert batch.case_ids[place] == case_id
        np.testing.assert_array_equal(batch.image_BCDHW[place], image)
        np.testing.assert_array_equal(batch.label_BDHW[place], label)
        expected_C4 = dataset[case_id].normalisation_C4
        np.testing.assert_array_equal(batch.normalisation_BC4[place], expected_C4)


def test_reader_processes_give_the_same_after_the_parent_has_read(sound_store: Path) -> None:
    """A reader forked from this process would hang here: Zarr's event loop is running."""
    expected = list(islice(batches(sound_store), 5))
    for one, other in zip(expected, batches(sound_store, workers=2), strict=False):
        assert_same(one, other)


def test_more_readers_than_cores_are_noted_once(
    sound_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch's own warning has four lines, names no setting, and comes twice."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with caplog.at_level("INFO", "segresmamba"):
        next(batches(sound_store, workers=2))
    assert caplog.messages == ["data.workers=2: the readers share 1 core(s)"]


@pytest.mark.parametrize("used", [False, True])
def test_batches_are_pinned_where_a_gpu_is_used_and_not_where_one_lies_idle(
    sound_store: Path, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(loader, "DataLoader", lambda *_, **options: given.update(options))
    batches(sound_store)
    assert given["pin_memory"] == used


def test_readers_outlive_a_stop_signal_and_end_with_the_loader(sound_store: Path) -> None:
    expected = list(islice(batches(sound_store), 8))
    prepare_readers()
    # Other tests may have used this server, and RankPool has one of its own.
    server = psutil.Process(forkserver._forkserver._forkserver_pid)
    before = set(server.children())
    loader = batches(sound_store, workers=2)
    received = [next(loader)]
    readers = list(set(server.children()) - before)
    assert len(readers) == 2
    for process in (server, *readers):
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            process.send_signal(number)
    received += islice(loader, 7)
    for one, other in zip(expected, received, strict=True):
        assert_same(one, other)
    del loader
    gc.collect()
    _, alive = psutil.wait_procs(readers, timeout=200)
    assert alive == []


def test_a_process_ends_whose_loader_is_still_there(sound_store: Path) -> None:
    """A traceback may hold the loader, and its readers block the signals that ask them to stop."""
    code = (
        "import sys; from pathlib import Path; from tests.data.stream.test_loader import batches\n"
        "if __name__ == '__main__':\n"
        "    loader = batches(Path(sys.argv[1]), workers=1); next(loader)"
    )
    subprocess.run([sys.executable, "-c", code, str(sound_store)], check=True, timeout=240)


def in_session(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == leader:
                found.append(process)
    return found


@pytest.mark.parametrize("when", ["reading", "starting"])
def test_readers_and_their_server_end_with_a_trainer_that_is_killed(
    sound_store: Path, when: str
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.data.stream.test_loader import batches\n"
        "if __name__ == '__main__':\n"
        "    loader = batches(Path(sys.argv[1]), workers=2)\n"
        "    if sys.argv[2] == 'starting': print('ready', flush=True)\n"
        "    kept = [next(loader) for _ in range(3)]; print('ready', flush=True)\n"
        "    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(sound_store), when]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"ready\n"
            family = in_session(trainer.pid)
            assert any("forkserver" in " ".join(process.cmdline()) for process in family)
        finally:
            trainer.kill()
    # A busy machine may take its time; what does not end by itself stays for ever.
    end = time.monotonic() + 200
    while (left := in_session(trainer.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        process.kill()
    assert left == []
    names = " ".join(os.listdir("/dev/shm"))
    assert not [process for process in family if f"torch_{process.pid}_" in names]


def test_readers_come_from_the_server_that_was_prepared(sound_store: Path) -> None:
    prepare_readers()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    next(batches(sound_store, workers=1))
    assert server == forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]


def test_a_loader_begins_anywhere(sound_store: Path) -> None:
    _, second, third = islice(batches(sound_store), 3)
    resumed = batches(sound_store, start_index=2)
    assert_same(second, next(resumed))
    assert_same(third, next(resumed))


def test_ranks_read_what_one_rank_alone_would(sound_store: Path) -> None:
    whole = next(batches(sound_store, micro_batch=4))
    parts = [next(batches(sound_store, rank=rank, world_size=2)) for rank in range(2)]
    torch.testing.assert_close(whole.image_BCDHW, torch.cat([part.image_BCDHW for part in parts]))
    assert whole.index_B.tolist() == [0, 1, 2, 3]


def test_reading_leaves_the_random_state_alone(sound_store: Path) -> None:
    before = torch.get_rng_state()
    next(batches(sound_store))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_moves_to_a_device(sound_store: Path) -> None:
    moved = next(batches(sound_store)).to(torch.device("meta"))
    assert moved.image_BCDHW.is_meta
    assert moved.label_BDHW.is_meta
    assert moved.index_B.tolist() == [0, 1]  # read on the host, so it stays there


@pytest.mark.parametrize("workers", [0, 1])
def test_a_case_smaller_than_the_patch_is_padded(sound_store: Path, workers: int) -> None:
    patch = (48, 32, 47)
    batch = next(batches(sound_store, workers=workers, micro_batch=6, patch=patch))
    dataset = open_dataset(sound_store)
    sampler = PatchSampler(dataset, dataset.case_ids, patch, 0, 1 / 3)
    for place in range(6):
        case_id, start = sampler.locate(place)
        image_CDHW, label_DHW = dataset[case_id].read()
        before = [max(-first, 0) for first in start]
        part = tuple(
            slice(max(first, 0), max(first, 0) + step)
            for first, step in zip(start, patch, strict=True)
        )
        image, label = image_CDHW[:, *part], label_DHW[part]
        pads = [
            (first, step - first - size)
            for first, step, size in zip(before, patch, label.shape, strict=True)
        ]
        np.testing.assert_array_equal(
            batch.image_BCDHW[place], np.pad(image, [(0, 0), *pads], mode="edge")
        )
        np.testing.assert_array_equal(
            batch.label_BDHW[place],
            np.pad(label.astype(np.int16), pads, constant_values=PADDING),
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_reported_as_what_it_is(store: Path, workers: int) -> None:
    for case in store.glob("case_*"):
        shard = layout.shard_file(case / layout.IMAGE, 4)
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="a stored case is damaged") as caught:
        next(batches(store, workers=workers))
    assert str(store) in caught.value.where


def test_a_reader_that_meets_damage_uses_its_buffer_again(store: Path) -> None:
    shard = layout.shard_file(store / "case_0" / layout.IMAGE, 4)
    shard.write_bytes(shard.read_bytes()[:-1])
    sampler = PatchSampler(open_dataset(store), ["case_0"], PATCH, 0, 1 / 3)
    reader = _Reader(sampler, shared=False, replacements=0)
    for index in range(4):
        (error,) = reader.__getitems__([index])
        assert isinstance(error, DataError)
        assert "a stored case is damaged" in error.problem
    assert len(reader._buffers._buffers) == 1


def lose_image(case: Path) -> None:
    layout.shard_file(case / layout.IMAGE, 4).unlink()


def test_crops_of_a_damaged_case_are_replaced_by_those_of_the_next_in_its_round(
    store: Path,
) -> None:
    dataset = open_dataset(store)
    sampler = PatchSampler(dataset, dataset.case_ids, PATCH, 0, 1 / 3)
    lose_image(store / "case_1")
    for index, batch in enumerate(islice(batches(store, micro_batch=1, max_bad_cases=1), 12)):
        wanted, _ = sampler.locate(index)
        attempt = int(wanted == "case_1")
        case_id, start = sampler.locate(index, attempt)
        assert batch.case_ids == (case_id,)
        assert list(batch.damaged) == ["case_1"] * attempt
        image, label = dataset[case_id].crop(start, PATCH)
        np.testing.assert_array_equal(batch.image_BCDHW[0], image)
        np.testing.assert_array_equal(batch.label_BDHW[0], label)


def test_replacements_depend_neither_on_workers_nor_on_restarts_nor_on_ranks(store: Path) -> None:
    lose_image(store / "case_1")
    first = list(islice(batches(store, max_bad_cases=1), 6))
    assert any(batch.damaged for batch in first)
    for one, other in zip(first, batches(store, max_bad_cases=1, workers=2), strict=False):
        assert_same(one, other)
    for one, other in zip(first[2:], batches(store, max_bad_cases=1, start_index=4), strict=False):
        assert_same(one, other)
    ranks = [batches(store, max_bad_cases=1, rank=r, world_size=2, micro_batch=1) for r in (0, 1)]
    for one, *halves in zip(first, *ranks, strict=False):
        assert one.case_ids == tuple(half.case_ids[0] for half in halves)


def test_damage_beyond_what_is_allowed_ends_the_loader(store: Path) -> None:
    for case in store.glob("case_*"):
        lose_image(case)
    with pytest.raises(DataError, match="2 stored cases are damaged"):
        next(batches(store, max_bad_cases=1, micro_batch=1))


def test_a_server_that_is_away_is_no_damaged_case(store: Path) -> None:
    dataset = open_dataset(store)
    with failing_server(store) as server:
        away = open_dataset(server.url, patience_s=0.1)
        server.fault, server.failures = "503", 10**6
        with pytest.raises(DataError) as error:
            away[dataset.case_ids[0]].crop((0, 0, 0), PATCH)
        assert not isinstance(error.value, DamagedCaseError)


SMALL_SHARED_MEMORY = """
import sys
from segresmamba.config import DataConfig
from segresmamba.data import make_loader, open_dataset
from segresmamba.errors import DataError

dataset = open_dataset(sys.argv[1])
config = DataConfig(store=sys.argv[1], patch=(32, 32, 32), workers=1)
place = dict(rank=0, world_size=1, micro_batch=4, start_index=0)
try:
    next(make_loader(dataset, dataset.case_ids, config, seed=1, **place))
except DataError as error:
    print(error.screen())
"""


@pytest.mark.parametrize(
    ("size", "needed"), [("512k", r"1.*MiB for another batch"), ("4k", "the semaphores of queues")]
)
def test_too_little_shared_memory_is_an_error_on_one_screen(
    sound_store: Path, size: str, needed: str
) -> None:
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no mount namespaces")
    command += [sys.executable, "-c", SMALL_SHARED_MEMORY, str(sound_store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.startswith("error: there is too little shared memory"), done.stderr
    assert "where:  /dev/shm of " in done.stdout
    assert re.search(rf"0\.\d MiB are free, needed: {needed}", done.stdout), done.stdout
