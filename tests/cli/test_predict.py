"""The arguments of `segresmamba predict`, in both of their forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from segresmamba.cli.predict import showing_progress
from tests.cli.test_main import run
from tests.data.raw import write_nifti
from tests.inference.conftest import noise, write_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("models") / "run")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "imagesTs").mkdir()
    for case in "ab":
        write_nifti(tmp_path / "imagesTs" / f"{case}_0000.nii.gz", noise(17, 18, 19))
    return tmp_path / "imagesTs"


def test_a_folder_is_segmented_once(
    model: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ("predict", model, model, images, tmp_path / "out", "--tta", "--overlap", "0.25")
    assert run(monkeypatch, *words) == 0
    said = capsys.readouterr()
    assert "2 cases segmented, 0 were done" in said.out
    assert "1 of 2 cases: a" in said.err
    assert (tmp_path / "out" / "b.nii.gz").exists()
    assert run(monkeypatch, *words) == 0
    assert "0 cases segmented, 2 were done" in capsys.readouterr().out


def test_a_bad_case_is_named_at_the_end(
    model: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (images / "bad_0000.nii.gz").write_bytes(b"nothing")
    assert run(monkeypatch, "predict", model, images, tmp_path / "out") == 1
    assert "1 cases failed:\n  bad: a file is truncated or damaged" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.nii.gz").exists()


def test_one_image_goes_to_a_file_or_a_folder(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images / "a_0000.nii.gz"
    assert run(monkeypatch, "predict", model, image, tmp_path / "label.mha") == 0
    assert (tmp_path / "label.mha").exists()
    assert run(monkeypatch, "predict", model, image, tmp_path / "label.mha") == 2
    assert run(monkeypatch, "predict", model, image, tmp_path / "out", "--format", "nrrd") == 0
    assert (tmp_path / "out" / "a.nrrd").exists()
    two = write_run(tmp_path / "two", channels=("t1", "t2"))
    other, label = images / "b_0000.nii.gz", tmp_path / "two.nii.gz"
    assert run(monkeypatch, "predict", two, image, other, label) == 0
    assert run(monkeypatch, "predict", two, image, image, other) == 2  # OUTPUT was forgotten
    for _ in range(2):  # it is replaced
        assert run(monkeypatch, "predict", model, image, "--out", tmp_path / "one.nii.gz") == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["MODEL", "IMAGES"], "needs more arguments"),
        (["MODEL", "--out", "x.nii.gz"], "needs more arguments"),
        (["MODEL", "IMAGES", "OUT", "--format", "png"], "choose among nifti, nrrd, mha, zarr"),
        (["MODEL", "IMAGES", "OUT", "--split", "test"], "choose among all, train, val"),
        (["MODEL", "IMAGES", "OUT", "--device", "tpu"], "choose among auto, cpu"),
        (["MODEL", "IMAGES", "--out", "x.nii.gz", "--probabilities"], "leave --probabilities out"),
        (["IMAGES", "IMAGES", "OUT"], "there is no trained model"),
    ],
)
def test_what_cannot_be_meant_is_one_screen(
    model: Path, images: Path, tmp_path: Path, words: list[str], match: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    meant = {"MODEL": model, "IMAGES": images, "OUT": tmp_path / "out"}
    assert run(monkeypatch, "predict", *(meant.get(word, word) for word in words)) == 2
    said = capsys.readouterr().err
    assert match in said
    assert len(said.splitlines()) < 20
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_pickle_is_no_model(
    model: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import pickle
    import shutil

    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harm",))

    run_folder = Path(shutil.copytree(model, tmp_path / "run"))
    for path in (run_folder / "best").iterdir():
        path.write_bytes(pickle.dumps(Harmful()))
    assert run(monkeypatch, "predict", run_folder, images, tmp_path / "out") == 2
    assert "the weights cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists()


def test_a_terminal_gets_bars_with_the_time_that_is_left() -> None:
    console = Console(force_terminal=True, width=100, record=True, file=None)
    with console.capture() as shown, showing_progress(console) as observer:
        observer.begin(2)
        observer.case("first")
        observer.windows(3, 8)
        observer.done("first")
    text = shown.get()
    assert "1/2" in text
    assert "first" in text
    assert "3/8" in text
