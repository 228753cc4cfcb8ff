"""`segresmamba serve` as a user starts it, asks it and ends it."""

from __future__ import annotations

import gzip
import signal
import sys
from pathlib import Path
from subprocess import PIPE

import nibabel as nib
import numpy as np
import pytest
import requests

from segresmamba.inference.model import load_model
from tests.cli.test_main import run
from tests.data.raw import write_nifti
from tests.inference.conftest import OWN_NETWORK, noise, write_run
from tests.processes import started

COMMAND = [sys.executable, "-m", "segresmamba.cli.main", "serve"]


def test_a_client_sends_a_file_and_gets_the_label_map_of_predict(tmp_path: Path) -> None:
    model = write_run(tmp_path / "run", model=OWN_NETWORK)
    image = tmp_path / "case_0000.nii.gz"
    write_nifti(image, noise(18, 20, 22))
    command = [*COMMAND, str(model), "--port", "0", "--device", "cpu"]
    with started(command, stdout=PIPE) as process:
        assert process.stdout is not None
        channels, address = process.stdout.readline(), process.stdout.readline()
        url = address.split()[1]
        with image.open("rb") as file:
            answer = requests.post(f"{url}/segment", files={"t1": file}, timeout=240)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=240) == 0
    assert channels == "channels: t1\n"
    assert url.startswith("http://127.0.0.1:")
    answer.raise_for_status()
    label = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    expected = load_model(model, device="cpu").segment(image)
    np.testing.assert_array_equal(np.asarray(label.dataobj), expected.array)
    np.testing.assert_array_equal(label.affine, expected.affine)


def test_a_mistake_is_one_screen_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "serve", tmp_path) == 2
    assert "there is no trained model" in capsys.readouterr().err
    assert run(monkeypatch, "serve", tmp_path, "--host", "0.0.0.0") == 2
    assert "SEGRESMAMBA_SERVE_TOKEN" in capsys.readouterr().err
