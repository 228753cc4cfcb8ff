"""The port at which ranks meet."""

import math
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import ports
from launch.ports import free_port


@given(job_id=st.integers(1, 2**31))
def test_the_port_is_outside_the_ephemeral_range(job_id: int) -> None:
    assert 20000 <= free_port(str(job_id)) < 32000


def test_a_job_keeps_its_port_and_the_next_has_another() -> None:
    assert free_port("4711") == free_port("4711")
    assert free_port("4711") != free_port("4712")


def test_a_port_that_is_taken_is_passed_over() -> None:
    taken = free_port("4711")
    with socket.socket() as other:
        other.bind(("", taken))
        other.listen()
        assert free_port("4711") != taken
    assert free_port("4711") == taken


def test_every_port_of_the_range_is_a_candidate() -> None:
    assert math.gcd(ports._STEP, ports._COUNT) == 1


def test_a_machine_without_a_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_ATTEMPTS", 0)
    with pytest.raises(OSError, match="job 4711 found no free port"):
        free_port("4711")
