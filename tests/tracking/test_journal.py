from __future__ import annotations

import errno
import json
import logging
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.tracking import JournalHeldError, TrackingError, read_journal
from segresmamba.tracking.journal import SCHEMA, Journal, read_header, read_records
from segresmamba.tracking.journal_lines import write_line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def write(path: Path, count: int) -> None:
    journal = Journal(path, name="run")
    for step in range(count):
        journal.append("metrics", step=step, epoch=None, values={"loss": 1 / (step + 1)})
    journal.close()


def test_first_record_names_the_schema_and_the_run(path: Path) -> None:
    write(path, 0)
    first = json.loads(path.read_text())
    assert first["kind"] == "run"
    assert first["schema"] == SCHEMA
    assert first["name"] == "run"


def test_records_come_back_in_order(path: Path) -> None:
    write(path, 3)
    records = read_journal(path)
    assert [record.kind for record in records] == ["run", "metrics", "metrics", "metrics"]
    assert [record.body["step"] for record in records[1:]] == [0, 1, 2]
    assert records[2].body["values"] == {"loss": 0.5}


def test_reading_goes_on_at_the_end_of_any_record(path: Path) -> None:
    write(path, 3)
    records = read_journal(path)
    for index, record in enumerate(records):
        assert list(read_records(path, record.end)) == records[index + 1 :]


def test_a_reopened_journal_goes_on_under_the_same_id(path: Path) -> None:
    write(path, 2)
    write(path, 2)
    kinds = [record.kind for record in read_journal(path)]
    assert kinds == ["run"] + ["metrics"] * 4


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.floats() | st.none() | st.text() | st.lists(st.booleans())))
def test_any_value_survives_as_strict_json(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path, name="run")
    journal.append("params", values=values)
    journal.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads(path.read_text().splitlines()[1], parse_constant=refuse)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            assert str(float(line["values"][key])) == str(value)
        else:
            assert line["values"][key] == value


def test_values_outside_json_become_text(path: Path) -> None:
    journal = Journal(path, name="run")
    journal.append("params", values={"store": Path("data/sample.zarr"), "patch": (64, 64)})
    journal.close()
    assert read_journal(path)[1].body["values"] == {
        "store": "data/sample.zarr",
        "patch": [64, 64],
    }


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_reading_stops_at_a_cut_record_and_says_so_once(
    path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, 3)
    os.truncate(path, path.stat().st_size - cut)
    assert [record.body["step"] for record in read_journal(path)[1:]] == [0, 1]
    assert len(caplog.messages) == 1
    assert "ends in the middle of a record" in caplog.text


def test_writing_goes_on_after_the_last_complete_record(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, 3)
    os.truncate(path, path.stat().st_size - 5)
    write(path, 1)
    assert [record.body["step"] for record in read_journal(path)[1:]] == [0, 1, 0]
    assert len(caplog.messages) == 1


def test_a_journal_cut_in_its_first_record_begins_again(path: Path) -> None:
    write(path, 0)
    os.truncate(path, 10)
    write(path, 1)
    assert [record.kind for record in read_journal(path)] == ["run", "metrics"]


def test_zeros_that_a_power_loss_left_are_cut(path: Path) -> None:
    write(path, 2)
    with path.open("ab") as file:
        file.write(bytes(4096))
    write(path, 1)
    assert [record.body["step"] for record in read_journal(path)[1:]] == [0, 1, 0]


def test_a_full_disk_leaves_no_half_record(path: Path) -> None:
    journal = Journal(path, name="run")
    before = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 20, hard))
    try:
        with pytest.raises(OSError, match=r"No space|too large"):
            journal.append("tags", values={"key": "value" * 20})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == before
    journal.append("tags", values={"key": "value"})
    journal.close()
    assert [record.kind for record in read_journal(path)] == ["run", "tags"]


def test_a_second_process_is_refused_and_told_who_writes(path: Path) -> None:
    journal = Journal(path, name="run")
    journal.append("status", status="running", host="node7", pid=4711)
    code = (
        "import sys, pathlib; from segresmamba.tracking.journal import Journal\n"
        "try: Journal(pathlib.Path(sys.argv[1]), name='second')\n"
        "except Exception as error: print(error.screen())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout
    journal.close()
    assert "another process is writing this journal" in told
    assert "process 4711 on node7" in told
    assert str(path) in told
    write(path, 1)  # free again


def test_the_death_of_its_writer_frees_a_journal(path: Path) -> None:
    code = (
        "import os, sys, pathlib; from segresmamba.tracking.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), name='run')\n"
        "journal.append('tags', values={'a': 'b'}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    write(path, 1)
    assert [record.kind for record in read_journal(path)] == ["run", "tags", "metrics"]


def test_a_file_system_without_locks_is_used_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("segresmamba.storage.locks.fcntl.flock", flock)
    with caplog.at_level(logging.WARNING):
        write(path, 1)
    assert "cannot be locked" in caplog.text


@pytest.fixture
def _locks_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which the locks of two machines do not meet."""
    monkeypatch.setattr("segresmamba.storage.locks.fcntl.flock", lambda _fd, _operation: None)


@pytest.mark.usefixtures("_locks_of_one_machine")
def test_of_two_processes_that_locks_do_not_keep_apart_the_last_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elder, newer = Journal(path, name="run"), Journal(path, name="run")
    elder.append("metrics", step=1, epoch=None, values={"train/loss": 1.0})
    newer.append("status", status="running", host="n2", pid=4711)
    elder.append("metrics", step=2, epoch=None, values={"train/loss": 1.0})  # as for an evaluation
    newer.append("params", values={})
    assert "another process has added to" in caplog.text
    for _ in range(2):  # the record of its end, too
        with pytest.raises(JournalHeldError, match="another process is writing") as error:
            elder.append("metrics", step=3, epoch=None, values={"train/loss": 1.0})
    assert error.value.got == "process 4711 on n2"
    newer.append("metrics", step=3, epoch=None, values={"train/loss": 1.0})
    elder.close()
    newer.close()
    caplog.clear()
    assert steps_in(path) == [1, 2, 3]
    assert not caplog.text  # of lines out of order, say


@pytest.mark.usefixtures("_locks_of_one_machine")
def test_a_start_elsewhere_is_found_when_its_records_come_later_than_their_size(
    path: Path,
) -> None:
    elder, newer = Journal(path, name="run"), Journal(path, name="run")
    begins = path.stat().st_size
    newer.append("params", values={})
    content = path.read_bytes()
    with path.open("r+b") as file:  # what a node may see of it for some seconds
        file.seek(begins)
        file.write(bytes(len(content) - begins))
    elder.append("tags", values={"a": "b"})
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(JournalHeldError):
        elder.append("tags", values={"c": "d"})
    newer.append("tags", values={"e": "f"})


@pytest.mark.usefixtures("_locks_of_one_machine")
def test_a_full_disk_costs_another_process_no_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, other = Journal(path, name="run"), Journal(path, name="run")
    other.append("tags", values={"a": "b"})
    write, full = os.write, OSError(errno.ENOSPC, "no space")

    def half(fd: int, line: bytes) -> int:
        write(fd, line[:9])
        raise full

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="no space"):
        journal.append("tags", values={"c": "d"})
    monkeypatch.undo()
    assert [record.kind for record in read_journal(path)] == ["run", "tags"]


def test_a_newer_schema_is_refused(path: Path) -> None:
    write(path, 1)
    body = {"schema": SCHEMA + 1, "id": "4f0c", "name": "run"}
    path.write_bytes(write_line("run", 1, 0, body))
    with pytest.raises(TrackingError, match="newer version") as error:
        read_journal(path)
    assert error.value.got == f"schema {SCHEMA + 1}"
    with pytest.raises(TrackingError, match="newer version"):
        Journal(path, name="run")


@pytest.mark.parametrize("content", ["hello\n", "[1, 2]\n", '{"kind": "run", "time_ms": 1}\n'])
def test_a_file_that_is_no_journal_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(TrackingError, match="not a journal"):
        read_journal(path)
    with pytest.raises(TrackingError, match="not a journal"):
        Journal(path, name="run")
    assert path.read_text() == content


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def steps_in(path: Path) -> list[int]:
    return [record.body["step"] for record in read_journal(path) if record.kind == "metrics"]


def test_damage_in_the_middle_is_said_and_set_aside_and_nothing_after_it_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, 4)
    lines = lines_of(path)
    damaged = lines[2].replace(b"0.5", b"0.7")  # still JSON
    path.write_bytes(b"".join([*lines[:2], damaged, b"rubbish\n", *lines[3:]]))
    assert steps_in(path) == [0, 2, 3]
    assert f"{path} has faults" in caplog.text
    assert "2 damaged (line 3, 4), 1 missing" in caplog.text
    size = path.stat().st_size
    journal = Journal(path, name="run")
    journal.append("metrics", step=4, epoch=None, values={"loss": 0.0})
    journal.close()
    assert journal.faults == "2 damaged (line 3, 4), 1 missing"
    aside = path.with_name("journal.damaged.jsonl")
    assert aside.read_bytes() == damaged + b"rubbish\n"
    assert len(path.read_bytes()[:size].split(b"\n")) == len(lines) + 2
    assert b"rubbish" not in path.read_bytes()
    assert steps_in(path) == [0, 2, 3, 4]


def test_lines_out_of_order_are_put_into_order(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, 5)
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], lines[3], *lines[1:3], lines[1], *lines[4:]]))
    assert steps_in(path) == [0, 1, 2, 3, 4]
    assert "2 out of order (line 3, 4), 1 repeated (line 5)" in caplog.text


def test_reading_in_parts_finds_each_record_of_a_journal_out_of_order(path: Path) -> None:
    write(path, 6)
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], lines[5], *lines[2:5], lines[6]]))
    whole = list(read_records(path))
    for index, record in enumerate(whole):
        rest = {later.number for later in read_records(path, record.end)}
        assert rest >= {later.number for later in whole[index + 1 :]}
    assert list(read_records(path, whole[-1].end)) == []


def test_a_line_of_an_earlier_version_has_no_checksum_and_is_read(path: Path) -> None:
    old = [
        {"kind": "run", "time_ms": 1, "schema": 1, "id": "4f0c", "name": "run"},
        {"kind": "metrics", "time_ms": 2, "step": 0, "epoch": None, "values": {"loss": 1.0}},
        {"kind": "metrics", "time_ms": 2, "stfp": 1, "epoch": None, "values": {"loss": 1.0}},
        {"kind": "metrics", "time_ms": 2, "step": 2, "epoch": None, "values": {"loss": "no"}},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in old))
    write(path, 2)
    assert steps_in(path) == [0, 0, 1]
    assert read_header(path).body["id"] == "4f0c"


def test_a_damaged_first_line_keeps_the_name_of_the_journal(path: Path) -> None:
    write(path, 2)
    lines = lines_of(path)
    path.write_bytes(b"".join([b"x" + lines[0][1:], *lines[1:]]))
    assert read_header(path).body["id"] == ""
    Journal(path, name="run", known_id="4f0c").close()
    assert read_header(path).body["id"] == "4f0c"
    assert steps_in(path) == [0, 1]


def damage(lines: list[bytes], draw: st.DrawFn) -> bytes:
    """A journal after one accident."""
    at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    match draw(st.sampled_from(["flip", "tear", "swap", "repeat", "lose", "join"])):
        case "flip":
            line = bytearray(lines[at])
            bit = draw(st.integers(0, 8 * len(line) - 1))
            line[bit // 8] ^= 1 << bit % 8
            lines[at] = bytes(line)
        case "tear":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        case "swap":
            lines[at], lines[other] = lines[other], lines[at]
        case "repeat":
            lines.insert(other, lines[at])
        case "lose":
            del lines[at]
        case "join":
            lines[at] = lines[at].rstrip(b"\n")
    return b"".join(lines)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_accident_loses_a_sound_line_or_shows_a_wrong_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, 6)
    written = lines_of(path)
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 4))):
        lines = content.splitlines(keepends=True)
        content = damage(lines, data.draw) if lines else b""
    path.write_bytes(content)
    # A tail that is no whole record yet is left out by readers, and completed by the next writer.
    sound = [line for line in written if line.rstrip(b"\n") in content]
    complete = [line for line in sound if content.rfind(line.rstrip(b"\n")) < content.rfind(b"\n")]
    try:
        read = list(read_records(path))
        journal = Journal(path, name="run")
    except TrackingError:
        assert not sound
        return
    journal.append("metrics", step=6, epoch=None, values={"loss": 0.0})
    journal.close()
    numbers = {json.loads(line)["n"] for line in written}
    assert {json.loads(line)["n"] for line in complete} <= {record.number for record in read}
    assert [record.number for record in read] == sorted({record.number for record in read})
    again = [record.number for record in read_records(path)]
    assert {json.loads(line)["n"] for line in sound} <= set(again)
    by_number = {json.loads(line)["n"]: json.loads(line) for line in written}
    for record in read:
        assert record.number in numbers
        assert record.body.items() <= by_number[record.number].items()


def test_a_missing_journal_is_named(path: Path) -> None:
    with pytest.raises(TrackingError, match="no journal") as error:
        read_journal(path)
    assert error.value.where == str(path)


def test_a_journal_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="cannot be written") as error:
        Journal(tmp_path / "no such folder" / "journal.jsonl", name="run")
    assert "run.root" in error.value.remedy


def test_a_group_that_shares_a_folder_may_write_on(path: Path) -> None:
    before = os.umask(0o002)
    try:
        Journal(path, name="tiny").close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o664
