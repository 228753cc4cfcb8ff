"""A process that makes no progress, seen by its watchdog; `os._exit` is replaced."""

from __future__ import annotations

import faulthandler
import threading
from pathlib import Path

import pytest

from segresmamba.config import load_config
from segresmamba.engine import train, watchdog
from segresmamba.engine.watchdog import Watchdog
from segresmamba.errors import PASSING_CODE, ConfigError
from tests.engine.tiny import tiny_config


class Ended:
    def __init__(self) -> None:
        self.event = threading.Event()
        self.codes: list[int] = []

    def __call__(self, code: int) -> None:
        faulthandler.cancel_dump_traceback_later()  # the process that the real one ends has none
        self.codes.append(code)
        self.event.set()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    ended = Ended()
    monkeypatch.setattr("os._exit", ended)
    monkeypatch.setattr(watchdog, "GRACE_S", 0.2)
    return ended


def hang_here(ended: Ended) -> None:
    assert ended.event.wait(200)


def reported(logs: Path, rank: int) -> str:
    """The stacks that a rank wrote; the real `os._exit` would not wait for them."""
    for thread in threading.enumerate():
        if thread.name == "watchdog report":
            thread.join()
    return (logs / f"hang-rank-{rank:05d}.txt").read_text()


def test_a_process_without_a_beat_shows_all_stacks_and_ends_as_a_passing_fault(
    tmp_path: Path, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    other = threading.Thread(target=hang_here, args=(ended,), name="a reader")
    other.start()
    with Watchdog(0.2, tmp_path / "logs", rank=3):
        hang_here(ended)
    other.join()
    assert ended.codes == [PASSING_CODE] == [75]
    stacks = reported(tmp_path / "logs", rank=3)
    for said in ("rank 3 has made no progress for 0.2 s", "in hang_here", "thread a reader:"):
        assert said in stacks
        assert said in caplog.text


def test_a_file_system_that_hangs_too_does_not_keep_it_from_ending(
    tmp_path: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: hang_here(ended))
    with Watchdog(0.1, tmp_path / "logs", rank=0):
        hang_here(ended)
    assert ended.codes == [PASSING_CODE]


@pytest.mark.parametrize("timeout_s", [None, 0.0, 1.0])
def test_a_process_that_beats_or_is_not_watched_goes_on(
    tmp_path: Path, ended: Ended, timeout_s: float | None
) -> None:
    pause = threading.Event()
    with Watchdog(timeout_s, tmp_path, rank=0) as dog:
        for _ in range(80):
            pause.wait(0.02)
            dog.beat()
    assert ended.codes == []


def test_a_training_that_hangs_in_a_step_is_found(
    tiny_store: Path, tmp_path: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segresmamba.engine.zero import ZeroEngine

    backward = ZeroEngine.backward

    def hangs(engine: ZeroEngine, *arguments: object) -> None:
        hang_here(ended)
        backward(engine, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ZeroEngine, "backward", hangs)
    settings = ("train.max_steps=1", "train.warmup_steps=0", "data.patience_s=0")
    train(tiny_config(tiny_store, tmp_path, *settings, "train.hang_timeout_s=2"))
    assert ended.codes == [PASSING_CODE]
    assert "in _train\n" in reported(tmp_path / "tiny" / "logs", rank=0)


def test_a_timeout_that_does_not_outlast_the_patience_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.hang_timeout_s: 300.*data\.patience_s"):
        load_config(["train.hang_timeout_s=300"])
    assert load_config(["train.hang_timeout_s=0"]).train.hang_timeout_s == 0
