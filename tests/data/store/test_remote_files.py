from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from segresmamba.config import DataConfig
from segresmamba.data import convert, make_loader, open_dataset, repair, verify, write_fingerprint
from segresmamba.data.store import remote_files
from segresmamba.data.store.files import PATIENCE_S
from segresmamba.errors import DataError
from tests.data.server import BUCKET, KEYS, FailingServer, failing_server, s3_server, upload

BOX = ((3, 9, 4), (25, 30, 31))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as (address, _):
        yield address


@pytest.fixture(scope="module")
def stored(endpoint: str, sound_store: Path) -> str:
    return upload(sound_store, endpoint, "folder/store.zarr")


@pytest.fixture
def url(stored: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store in a bucket, with the environment that is needed to reach it."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    return stored


def test_a_store_behind_a_url_reads_as_its_folder_does(url: str, sound_store: Path) -> None:
    there, here = open_dataset(url), open_dataset(sound_store)
    assert (there.digest, there.case_ids, there.where) == (here.digest, here.case_ids, url)
    for case_id in here.case_ids:
        for one, other in zip(there[case_id].crop(*BOX), here[case_id].crop(*BOX), strict=True):
            np.testing.assert_array_equal(one, other)
        assert there[case_id].class_position(1, 5) == here[case_id].class_position(1, 5)
    image = there["case_1"].open_image()
    np.testing.assert_array_equal(
        image[:, 3:9, :, 5:40], here["case_1"].open_image()[:, 3:9, :, 5:40]
    )


def test_reader_processes_read_from_a_url_after_the_parent_has_read(url: str) -> None:
    dataset = open_dataset(url)
    dataset["case_0"].crop(*BOX)
    parts = []
    for workers in (0, 2):
        config = DataConfig(store=url, patch=(32, 32, 32), workers=workers)
        loader = make_loader(
            dataset, dataset.case_ids, config, 0, rank=0, world_size=1, micro_batch=2, start_index=0
        )
        parts.append([(b.case_ids, b.image_BCDHW.numpy().copy()) for b in islice(loader, 4)])
    for (ids, image), (other_ids, other_image) in zip(*parts, strict=True):
        assert ids == other_ids
        np.testing.assert_array_equal(image, other_image)


def _crop_or_explain(dataset: object, answers: object) -> None:
    signal.alarm(60)  # so that a test of a hang does not hang
    try:
        dataset["case_0"].crop(*BOX)  # type: ignore[index]
        answers.put("read")  # type: ignore[attr-defined]
    except DataError as error:
        answers.put(error.problem)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_forked_after_reading_gets_an_error_instead_of_hanging(url: str) -> None:
    dataset = open_dataset(url)
    dataset["case_0"].crop(*BOX)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_crop_or_explain, args=(dataset, answers))
    process.start()
    assert "forked" in answers.get(timeout=200)
    process.join(60)
    assert process.exitcode == 0


def test_verify_and_fingerprint_take_urls(url: str, sound_store: Path, tmp_path: Path) -> None:
    assert verify(url) == []
    there, _ = write_fingerprint(url, tmp_path / "there")
    here, _ = write_fingerprint(sound_store, tmp_path / "here")
    assert there.read_text() == here.read_text()
    with pytest.raises(DataError, match="only a store in a folder can be repaired"):
        repair(url)


def test_verify_finds_what_is_wrong_behind_a_url(url: str, endpoint: str, store: Path) -> None:
    shard = store / "case_1" / "0" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    (store / "case_2" / "labels" / "segmentation" / "0" / "c" / "0" / "0" / "0").unlink()
    damaged = upload(store, endpoint, "damaged")
    found = {problem.case_id: problem for problem in verify(damaged)}
    assert "cannot be read" in found["case_1"].message
    assert found["case_1"].path == f"{damaged}/case_1/0"
    assert "missing" in found["case_2"].message
    assert set(found) == {"case_1", "case_2"}


def test_a_store_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(DataError, match="there is no converted dataset") as caught:
        open_dataset(f"s3://{BUCKET}/other")
    assert caught.value.where == f"s3://{BUCKET}/other/dataset.json"


def test_a_wrong_bucket_is_named(url: str) -> None:
    with pytest.raises(DataError, match="no such bucket") as caught:
        open_dataset("s3://nobody/store")
    assert "s3://nobody/store" in caught.value.where


def test_missing_credentials_are_asked_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # no cloud machine
    with pytest.raises(DataError, match="needs credentials") as caught:
        open_dataset(url, patience_s=1)
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy


def test_refused_access_is_told_from_a_store_that_is_not_there(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")  # but the bucket is not public
    with pytest.raises(DataError, match="refuses access"):
        open_dataset(url)


def test_a_server_that_goes_away_while_reading_is_named(
    url: str, sound_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as (address, process):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        dataset = open_dataset(upload(sound_store, address, "short"), patience_s=1)
        dataset["case_0"].crop(*BOX)
        process.kill()
        process.wait()
        for case_id in ("case_0", "case_1"):  # one that is open, and one that is not
            with pytest.raises(DataError, match="gives no answer") as caught:
                dataset[case_id].crop(*BOX)
            assert f"short/{case_id}/0" in caught.value.where
    assert "Debug" not in caught.value.got
    assert os.linesep not in caught.value.got


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(DataError, match="unknown kind") as caught:
        open_dataset("ftp://somewhere/store")
    assert "s3://" in caught.value.remedy


def test_conversion_into_a_url_is_refused(raw: Path) -> None:
    with pytest.raises(DataError, match="a store is written to a folder"):
        convert(raw, Path("s3://bucket/store"))
    assert not Path("s3:").exists()


@pytest.fixture
def server(sound_store: Path) -> Iterator[FailingServer]:
    with failing_server(sound_store) as there:
        yield there


@pytest.mark.parametrize("fault", ["503", "500", "429", "reset", "cut"])
def test_a_passing_fault_is_waited_for(
    server: FailingServer, sound_store: Path, fault: str
) -> None:
    dataset = open_dataset(server.url)
    server.fault, server.failures, server.asked = fault, 3, 0
    there, here = dataset["case_1"].crop(*BOX), open_dataset(sound_store)["case_1"].crop(*BOX)
    np.testing.assert_array_equal(there[0], here[0])
    np.testing.assert_array_equal(there[1], here[1])
    assert server.failures == 0
    assert server.asked > 3


def test_the_log_says_once_in_an_outage_what_it_waits_for(
    server: FailingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_files, "_ROUND_S", 0.1)
    monkeypatch.setattr(remote_files, "_PAUSE_S", (0.01, 0.1))
    dataset = open_dataset(server.url)
    with caplog.at_level(logging.WARNING):
        for outage in (1, 2):
            server.failures = 50
            dataset[f"case_{outage}"].crop(*BOX)
            said = [record.getMessage() for record in caplog.records]
            assert len(said) == outage
    assert f"{server.url}/case_1/0/zarr.json" in said[0]
    assert "for up to 300 s (data.patience_s)" in said[0]
    assert "503" in said[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_patience_ends_with_an_error_that_names_the_fault(
    server: FailingServer, workers: int
) -> None:
    dataset = open_dataset(server.url, patience_s=0.5)
    server.failures = 10**9
    config = DataConfig(store=server.url, patch=(32, 32, 32), workers=workers)
    loader = make_loader(
        dataset, dataset.case_ids, config, 0, rank=0, world_size=1, micro_batch=1, start_index=0
    )
    with pytest.raises(DataError, match="gives no answer") as caught:
        next(loader)
    assert "503" in caught.value.got
    assert server.url in caught.value.where


def test_readers_get_the_patience_of_the_configuration(server: FailingServer) -> None:
    assert DataConfig.model_fields["patience_s"].default == PATIENCE_S
    sent = pickle.loads(pickle.dumps(open_dataset(server.url, patience_s=7)))
    assert sent.files._patience_s == 7


@pytest.mark.parametrize("fault", ["400", "403"])
def test_a_request_that_will_never_succeed_is_not_repeated(
    server: FailingServer, fault: str
) -> None:
    server.fault, server.failures = fault, 1
    with pytest.raises(DataError, match=r"gives no answer|refuses access"):
        open_dataset(server.url)
    assert server.asked == 1


def test_a_server_that_gives_files_only_as_a_whole_is_told_apart(server: FailingServer) -> None:
    dataset = open_dataset(server.url)
    server.fault, server.failures = "whole", 10
    with pytest.raises(DataError, match="only as a whole") as caught:
        dataset["case_1"].read()
    assert "nginx" in caught.value.remedy
    assert server.failures == 8  # for the metadata and once for a part
