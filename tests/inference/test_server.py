"""A model over HTTP: what clients get, and what they are refused."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zarr
from starlette.testclient import TestClient

from segresmamba.data import Preprocessing
from segresmamba.errors import ConfigError
from segresmamba.inference import server
from segresmamba.inference.model import SegmentationModel, load_model
from segresmamba.inference.server import WARNINGS, ModelServer, model_app
from segresmamba.inference.server_access import ServerOptions
from tests.data.raw import write_series
from tests.inference.conftest import noise, write_run

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])
HOST = "http://127.0.0.1"


def nifti(volume: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] = AFFINE) -> bytes:
    content: bytes = nib.Nifti1Image(volume, affine).to_bytes()
    return content


IMAGE = nifti(noise(18, 20, 22))


@pytest.fixture(scope="module")
def model(model_run: Path) -> SegmentationModel:
    return load_model(model_run, device="cpu")


@pytest.fixture(scope="module")
def client(model: SegmentationModel) -> Iterator[TestClient]:
    app = model_app(model, ServerOptions(max_bytes=1 << 20))
    with TestClient(app, HOST, raise_server_exceptions=False) as one:
        yield one


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> SegmentationModel:
    run = write_run(tmp_path_factory.mktemp("two") / "run", channels=("T1", "T2 flair"))
    return load_model(run, device="cpu")


def test_a_file_is_sent_and_its_label_map_comes_back(
    client: TestClient, model: SegmentationModel, tmp_path: Path
) -> None:
    (tmp_path / "image.nii").write_bytes(IMAGE)
    expected = model.segment(tmp_path / "image.nii")
    for name, content in (("t1", IMAGE), ("image", gzip.compress(IMAGE))):
        answer = client.post("/segment", files={name: ("any name.dcm", content)})
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == 'attachment; filename="label.nii.gz"'
        label = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        np.testing.assert_array_equal(np.asarray(label.dataobj), expected.array)
        np.testing.assert_array_equal(label.affine, AFFINE)
    assert len(np.unique(expected.array)) > 1


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder, noise(18, 20, 22).astype(np.int16))
    return folder


def test_a_zip_of_a_dicom_series_is_an_image(
    client: TestClient, model: SegmentationModel, series: Path
) -> None:
    expected = model.segment(series)
    files = {f"../../{path.name}": path.read_bytes() for path in series.iterdir()}
    # Others beside them are left out; so is what another format would read of a DICOM file.
    files |= {"README": b"a text", "DIR/": b"", "x.nrrd": b"NRRD0004\ndata file: /etc/passwd\n"}
    first = next(iter(files))
    files[first] = b"NRRD0004\n".ljust(128) + files[first][128:]
    answer = client.post("/segment", files={"t1": zipped(files)})
    assert answer.status_code == 200
    label = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    np.testing.assert_array_equal(np.asarray(label.dataobj), expected.array)
    np.testing.assert_allclose(label.affine, expected.affine)


@pytest.mark.parametrize(
    ("content", "where", "match"),
    [
        (zipped({"a.txt": b"nothing", "b.dcm": bytes(200)}), "t1", "no DICOM file"),
        (zipped({"a.dcm": bytes(3 << 20)}), "t1", "larger than this server takes"),
        (zipped({"a.dcm": noise(20, 20).tobytes()})[:300], "t1", "damaged or encrypted"),
        (zipped({"a.dcm": bytes(128) + b"DICM" + bytes(304)}), "t1", "one DICOM series"),
        (zipped({"a": b"", "b": bytes(128) + b"DICM" + bytes(300)}), "t1/1.dcm", "is damaged"),
    ],
)
def test_a_bad_zip_is_named_by_its_channel(
    client: TestClient, content: bytes, where: str, match: str
) -> None:
    answer = client.post("/segment", files={"t1": content})
    assert (answer.status_code, answer.json()["where"]) == (422, where)
    assert match in answer.json()["detail"]
    assert "/tmp" not in answer.text


def test_probabilities_come_with_the_label_map(
    client: TestClient, model: SegmentationModel, tmp_path: Path
) -> None:
    answer = client.post("/segment?probabilities=true&format=mha", files={"t1": IMAGE})
    assert answer.headers["content-disposition"] == 'attachment; filename="answer.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert "label.mha" in archive.namelist()
        archive.extractall(tmp_path)
    (tmp_path / "image.nii").write_bytes(IMAGE)
    expected = model.segment(tmp_path / "image.nii", probabilities=True).probabilities
    found = zarr.open_group(tmp_path / "label.probabilities.zarr", mode="r")["0"]
    np.testing.assert_allclose(found[1].sum(), expected[1].sum(), rtol=1e-3)
    assert client.post("/segment?probabilities=x", files={"t1": IMAGE}).status_code == 422


def test_channels_are_told_apart_by_their_names(two_channels: SegmentationModel) -> None:
    first, second = (noise(16, 17, 18, seed=seed) for seed in (1, 2))
    expected = two_channels.segment(np.stack([one.T for one in (first, second)])).array
    files = {"T2 flair": nifti(second, np.eye(4)), "T1": nifti(first, np.eye(4))}
    with TestClient(model_app(two_channels, ServerOptions()), HOST) as client:
        answer = client.post("/segment?format=nrrd", files=files)
        assert answer.content.startswith(b"NRRD")
        answer = client.post("/segment", files=files)
        label = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        np.testing.assert_array_equal(np.asarray(label.dataobj).T, expected)
        for names in (["T1"], ["T1", "T3"], ["image", "T1"], []):
            answer = client.post("/segment", files=dict.fromkeys(names, files["T1"]))
            assert answer.status_code == 422
            assert "each of the channels T1, T2 flair" in answer.json()["detail"]
        twice = [("T1", files["T1"]), ("T1", files["T1"])]
        assert client.post("/segment", files=twice).status_code == 422
        thrice = [*twice, ("T2 flair", files["T2 flair"])]
        assert "each of the channels" in client.post("/segment", files=thrice).json()["detail"]


def test_a_request_without_files_is_told_how_files_are_sent(client: TestClient) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    text = b'--x\r\nContent-Disposition: form-data; name="t1"\r\n\r\nimage.nii\r\n--x--\r\n'
    for request in (
        {"content": text, "headers": form},  # curl -F t1=image.nii, without the @
        {"data": {"t1": "image.nii"}},
        {"content": IMAGE, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": IMAGE},
        {"content": b"no form", "headers": form},
    ):
        answer = client.post("/segment", **request)  # type: ignore[arg-type]
        assert answer.status_code == 422, request
        assert "as curl -F t1=@FILE does" in answer.json()["detail"]


def test_an_unknown_word_of_the_address_is_refused(client: TestClient) -> None:
    answer = client.post("/segment?probability=true&tta=1", files={"t1": IMAGE})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("unknown: probability, tta; ")


def test_it_says_what_it_wants_and_what_labels_mean(client: TestClient) -> None:
    found = client.get("/model").json()
    assert found["channels"] == ["t1"]
    assert found["labels"] == {"background": 0, "ball": 1, "box": 5}
    for path, status in {"/": 404, "/docs": 404, "/segment": 405, "/../etc/passwd": 404}.items():
        assert client.get(path).status_code == status
    answer = client.post("/segment?format=zarr", files={"t1": IMAGE})
    assert answer.json()["detail"] == "format is one of nifti, nrrd, mha, not 'zarr'"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated or damaged"),
        (IMAGE[:5000], "truncated or damaged"),
        (gzip.compress(IMAGE)[:3000], "truncated or damaged"),
        (b"NDims = 3\nElementDataFile = /etc/passwd\n" + bytes(500), "truncated or damaged"),
        (nifti(noise(18, 20)), "three dimensions"),
        (nifti(noise(4, 5, 6, 2)), "three dimensions"),
        (nifti(np.full((18, 18, 18), np.nan, np.float32)), "NaN"),
        (nifti(np.zeros((18, 18, 18), np.float32)), "zero"),
    ],
)
def test_a_bad_file_is_named_by_its_channel(client: TestClient, content: bytes, match: str) -> None:
    answer = client.post("/segment", files={"t1": content})
    assert answer.status_code == 422
    assert answer.json()["where"] == "t1"
    assert match in answer.json()["detail"]
    assert "/" not in answer.json()["got"]


def test_a_larger_case_is_refused_before_it_is_read(
    client: TestClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    answer = client.post("/segment", files={"t1": bytes(3 << 20)})
    assert answer.status_code == 413
    parts = (bytes(1 << 20) for _ in range(3))  # a request without a length
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/segment", content=parts, headers=form).status_code == 413
    small = gzip.compress(nifti(np.zeros((100, 100, 100), np.float32)))
    answer = client.post("/segment", files={"t1": small})
    assert answer.status_code == 422
    assert "larger than this server takes" in answer.json()["detail"]
    preprocessing = Preprocessing(spacing_mm=(1, 1, 1))
    run = write_run(tmp_path_factory.mktemp("fine") / "run", preprocessing=preprocessing)
    app = model_app(load_model(run, device="cpu"), ServerOptions(max_bytes=1 << 20))
    with TestClient(app, HOST) as fine:
        large_voxels = nifti(noise(18, 20, 22), np.diag([90.0, 90, 90, 1]))
        answer = fine.post("/segment", files={"t1": large_voxels})
        assert "larger than this server takes" in answer.json()["detail"]


def test_doubts_about_a_case_reach_the_client(tmp_path: Path) -> None:
    preprocessing = Preprocessing(trained_mm=((1, 1, 1), (2, 2, 2)))
    run = write_run(tmp_path / "run", preprocessing=preprocessing)
    with TestClient(model_app(load_model(run, device="cpu"), ServerOptions()), HOST) as client:
        answer = client.post("/segment", files={"t1": nifti(noise(9, 9, 9), np.diag([9, 9, 9, 1]))})
    assert answer.headers[WARNINGS].startswith("t1 has voxels of 9 x 9 x 9 mm")
    assert "trained on 1 x 1 x 1 to 2 x 2 x 2" in answer.headers[WARNINGS]
    assert answer.headers[WARNINGS].count("trained on") == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 400),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9000"}, 200),
    ],
)
def test_web_pages_are_not_answered(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/model", headers=headers).status_code == status


def test_with_a_token_only_those_who_have_it_are_answered(model: SegmentationModel) -> None:
    options = ServerOptions(host="0.0.0.0", token="hunter22")
    with TestClient(model_app(model, options), "http://server.example") as client:
        for given in ("", "Bearer", "Bearer hunter2", "Bearer hunter22é", "hunter22"):
            headers = {"Authorization": given.encode()}
            for path in ("/model", "/segment", "/absent"):
                assert client.get(path, headers=headers).status_code == 401, given
        headers = {"Authorization": "Bearer hunter22"}
        assert client.get("/model", headers=headers).status_code == 200


def test_other_machines_need_a_token() -> None:
    with pytest.raises(ConfigError, match=r"without a password.*SEGRESMAMBA_SERVE_TOKEN"):
        ServerOptions(host="0.0.0.0")
    assert ServerOptions().host == "127.0.0.1"


def test_a_taken_port_is_said(model: SegmentationModel) -> None:
    first = ModelServer(model, ServerOptions())
    port = int(first.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match="cannot listen there"):
        ModelServer(model, ServerOptions(port=port))
    first._socket.close()


def test_a_full_disk_is_no_mistake_of_the_client(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server.shutil, "copyfileobj", full)
    assert client.post("/segment", files={"t1": IMAGE}).status_code == 503


def test_a_case_is_given_up_when_the_server_ends(model: SegmentationModel) -> None:
    ending = Event()
    app = model_app(model, ServerOptions(), ending.is_set)
    with TestClient(app, HOST) as client:
        ending.set()
        assert client.post("/segment", files={"t1": IMAGE}).status_code == 503


def test_one_case_is_computed_at_a_time(
    model: SegmentationModel, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = [0]
    compute = model.segment_prepared

    def counted(*given: Any, **named: Any) -> Any:
        inside[0] += 1
        assert inside[0] == 1
        try:
            return compute(*given, **named)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(model, "segment_prepared", counted)
    codes: list[int] = []

    def ask() -> None:
        codes.append(client.post("/segment", files={"t1": IMAGE}).status_code)

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 3
