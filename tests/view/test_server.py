"""The server, asked over real connections: what it hands out, and what it refuses."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import nibabel as nib
import numpy as np
import pytest

from segresmamba.errors import BackendMissingError, ConfigError
from segresmamba.view import niivue, server
from segresmamba.view.cases import CaseList, ViewRequest
from segresmamba.view.server import ViewServer
from tests.view.test_cases import write_volume


@contextmanager
def serving(shown: CaseList) -> Iterator[ViewServer]:
    with ViewServer(shown) as one:
        Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture(scope="module")
def with_niivue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stand-in for NiiVue's file, which no test here runs."""
    script = tmp_path_factory.mktemp("niivue") / "niivue.js"
    script.write_text("// NiiVue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(niivue, "SCRIPT", script)
        patch.setitem(server._FILES, "niivue.js", (script, "text/javascript"))
        yield script


@pytest.fixture(scope="module")
def run_server(with_niivue: Path, viewed_run: Path) -> Iterator[ViewServer]:
    with serving(ViewRequest([str(viewed_run)]).open()) as one:
        yield one


def ask(
    one: ViewServer, name: str, *, word: str | None = None, host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", one.server_port, timeout=60)
    address = f"/{one.word if word is None else word}/{name}"
    connection.request("GET", address, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_it_listens_on_this_machine_alone(run_server: ViewServer) -> None:
    assert run_server.server_address[0] == "127.0.0.1"
    assert run_server.url.startswith(f"http://127.0.0.1:{run_server.server_port}/")


def test_the_page_and_its_files_are_there(run_server: ViewServer) -> None:
    for name, kind in {
        "": "text/html",
        "page.css": "text/css",
        "page.js": "text/javascript",
        "labels.js": "text/javascript",
        "niivue.js": "text/javascript",
        "niivue-LICENSE.txt": "text/plain",
    }.items():
        answer, content = ask(run_server, name)
        assert (answer.status, bool(content)) == (200, True), name
        assert answer.headers["Content-Type"].startswith(kind), name
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"


def test_the_list_of_cases_names_what_each_has(run_server: ViewServer) -> None:
    index = json.loads(ask(run_server, "cases.json")[1])
    assert index["title"] == "run"
    assert index["label_names"] == {"1": "ball", "2": "box"}
    assert [case["dice"] for case in index["cases"]] == [one.dice for one in run_server.shown.cases]
    assert index["cases"][0]["channels"] == ["channel0", "channel1"]
    assert set(index["cases"][0]["labels"]) == {"prediction", "reference"}


def test_volumes_are_nifti_in_the_geometry_of_the_case(
    run_server: ViewServer, tiny_store: Path
) -> None:
    raw, name = tiny_store.parent / "raw", run_server.shown.cases[0].name
    original = nib.load(raw / "imagesTr" / f"{name}_0001.nii.gz")
    label = nib.load(raw / "labelsTr" / f"{name}.nii.gz")
    for address, expected in {"channel/1": original, "label/reference": label}.items():
        answer, content = ask(run_server, f"cases/0/{address}.nii")
        assert answer.status == 200
        assert "X-Other-Grid" not in answer.headers
        found = nib.Nifti1Image.from_bytes(content)
        np.testing.assert_allclose(found.affine, expected.affine)
        np.testing.assert_allclose(found.dataobj, expected.dataobj, rtol=1e-6)
    found = nib.Nifti1Image.from_bytes(ask(run_server, "cases/0/label/prediction.nii")[1])
    np.testing.assert_allclose(found.affine, label.affine)
    assert set(np.unique(found.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize(
    "name",
    [
        "../server.py",
        "..%2fserver.py",
        "page/../../server.py",
        "/etc/passwd",
        "cases/0/channel/..%2f..%2fetc.nii",
        "cases/0/label/../../../x.nii",
        "cases/0/channel/2.nii",
        "cases/99/channel/0.nii",
        "cases/-1/channel/0.nii",
        "cases/0/label/errors.nii",
        "cases/0",
        "absent.js",
    ],
)
def test_nothing_else_is_handed_out(run_server: ViewServer, name: str) -> None:
    assert ask(run_server, name)[0].status == 404


@pytest.mark.parametrize("word", ["", "guessed", "%C3%A9"])
def test_without_the_random_word_nothing_is_there(run_server: ViewServer, word: str) -> None:
    assert ask(run_server, "cases.json", word=word)[0].status == 404


@pytest.mark.parametrize(
    "host", ["attacker.example", "127.0.0.1.attacker.example:80", "localhostx"]
)
def test_another_name_for_this_machine_is_refused(run_server: ViewServer, host: str) -> None:
    answer, content = ask(run_server, "cases.json", host=host)
    assert answer.status == 403
    assert b"cases" not in content


def test_a_forwarded_port_is_answered(run_server: ViewServer) -> None:
    assert ask(run_server, "cases.json", host="localhost:9000")[0].status == 200


def test_only_get_is_answered(run_server: ViewServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", run_server.server_port, timeout=60)
    connection.request("POST", f"/{run_server.word}/cases.json")
    assert connection.getresponse().status == 501
    connection.close()


def test_a_label_on_another_grid_is_marked(with_niivue: Path, tmp_path: Path) -> None:
    image = write_volume(tmp_path / "image.nii.gz")
    label = write_volume(tmp_path / "label.nii.gz", shape=(4, 5, 7))
    with serving(ViewRequest([str(image)], label=label).open()) as one:
        answer, content = ask(one, "cases/0/label/prediction.nii")
    assert answer.headers["X-Other-Grid"] == "4 x 5 x 7 voxels, the image has 4 x 5 x 6"
    assert nib.Nifti1Image.from_bytes(content).shape == (4, 5, 7)


def test_a_volume_that_is_damaged_later_is_one_screen(with_niivue: Path, tmp_path: Path) -> None:
    image = write_volume(tmp_path / "image.nii")
    with serving(ViewRequest([str(image)]).open()) as one:
        image.write_bytes(image.read_bytes()[:400])
        answer, content = ask(one, "cases/0/channel/0.nii")
        assert answer.status == 422
        assert content.decode().startswith("error: a file is truncated or damaged")
        image.unlink()
        assert b"a file is missing" in ask(one, "cases/0/channel/0.nii")[1]


def test_a_port_that_is_taken_is_one_screen(with_niivue: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="cannot listen at this port") as caught:
            ViewServer(CaseList("nothing", [], {}), port)
    assert str(port) in caught.value.got


def test_without_niivue_nothing_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(niivue, "SCRIPT", tmp_path / "absent.js")
    with pytest.raises(BackendMissingError, match="NiiVue"):
        ViewServer(CaseList("nothing", [], {}))


def test_the_address_without_its_last_slash_leads_to_the_page(run_server: ViewServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", run_server.server_port, timeout=60)
    connection.request("GET", f"/{run_server.word}")
    answer = connection.getresponse()
    connection.close()
    assert (answer.status, answer.getheader("Location")) == (301, f"/{run_server.word}/")
