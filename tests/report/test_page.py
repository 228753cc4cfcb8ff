from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segresmamba.config import TrackingConfig
from segresmamba.errors import DataError
from segresmamba.report import Report, ReportError, write_report
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import TrackingError, read_history, sync
from segresmamba.tracking.energy.ledger import Ledger
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.state import open_state
from tests.report.recorded import FACTS, STEPS, record_run


def no_mlflow() -> str:
    raise AssertionError("folders need no MLflow")


def report(root: Path, out: Path, **options: Any) -> Report:
    return write_report([str(root)], out, uri=no_mlflow, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, two seeds each, and a run that is still going."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        cases = {f"case{index}": 0.9 - 0.1 * index - 0.01 * seed for index in range(4)}
        record_run(root, f"mamba_{seed}", seed=seed, cases=cases, energy_kwh=0.004)
        worse = {case: dice - 0.1 for case, dice in cases.items()}
        record_run(root, f"net_{seed}", model="segresnet", seed=seed, cases=worse, memory_gib=1.5)
    record_run(root, "going", model="<b>new</b>", status=None, energy_kwh=None)
    return root


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(root, tmp_path_factory.mktemp("out"), baseline="net_0")


@pytest.fixture(scope="module")
def page(made: Report) -> str:
    return made.page.read_text()


def rows(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    part = markdown.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_needs_nothing_besides_itself(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) > 3
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r'(src|href)="data:[^"]*"', "", page)


def test_the_heading_tells_networks_from_variants_of_one(page: str, tmp_path: Path) -> None:
    assert "<h1>3 networks compared</h1>" in page
    record_run(tmp_path / "runs", "a", settings={"lr": 0.1})
    assert "<h1>a (segresmamba)</h1>" in report(tmp_path / "runs", tmp_path).page.read_text()
    record_run(tmp_path / "runs", "b", settings={"lr": 0.2})
    both = report(tmp_path / "runs", tmp_path).page.read_text()
    assert "<h1>2 variants of 1 network compared</h1>" in both


def test_a_name_is_text_and_never_markup(page: str) -> None:
    assert "&lt;b&gt;new&lt;/b&gt;" in page
    assert "<b>new" not in page


def test_markdown_has_a_row_for_each_network_with_means_and_spreads(made: Report) -> None:
    networks = {row[0]: row[1:] for row in rows(made.markdown.read_text(), "Networks")}
    going = "going (&lt;b&gt;new&lt;/b&gt;)"
    assert list(networks) == [going, "segresmamba", "segresnet"]
    runs, parameters, memory, step, epoch, energy, metered, co2e, patches, *scores = networks[
        "segresmamba"
    ]
    dice, hd95, front, point = scores
    assert (runs, parameters, memory, step, epoch) == ("2", "1.50", "2.00", "1.00", "2.00")
    assert (energy, metered, co2e, patches) == ("4.00", "3.00", "0.400", "200")
    assert (dice, hd95, front) == ("**0.745** ± 0.007", "**3.00**", "●")
    # 0.75 Wh more than net_0 by the meter; the Dice of net_0 is 0.65.
    assert float(point) == pytest.approx(0.75 / 9.5, rel=0.01)
    assert networks["segresnet"][6] == "**2.25**"
    assert networks["segresnet"][-1] == ""  # nothing gained
    assert networks[going][5:9] == [""] * 4  # no energy was measured


def test_estimated_energy_makes_no_claim_between_networks(tmp_path: Path) -> None:
    scores = {"cases": {"a": 0.8}, "cpu_power": "estimated from load"}
    for name, energy_kwh in (("small", 0.001), ("large", 0.004)):
        record_run(tmp_path / "runs", name, energy_kwh=energy_kwh, model=name, **scores)
    text = report(tmp_path / "runs", tmp_path, baseline="small").markdown.read_text()
    (large, small) = rows(text, "Networks")
    assert large[0].startswith("large")
    assert (large[6:9], small[6:9]) == (["4.00", "0", "0.400"], ["1.00", "0", "0.100"])
    assert (large[-1], small[-1]) == ("", "")  # no energy per point of Dice
    assert "The estimate does not tell which network needs less" in text


def test_energies_of_different_meters_are_not_compared(tmp_path: Path) -> None:
    record_run(tmp_path / "runs", "metered", model="a", cases={"a": 0.8})
    gpu = {"cpu_power": "estimated from load", "gpu_power": "measured (NVML): 1 x GPU"}
    folder = record_run(tmp_path / "runs", "gpu", model="b", cases={"a": 0.7})
    ledger = json.loads((folder / "emissions.json").read_text())
    (segment,) = ledger["segments"].values()
    segment |= {**gpu, "gpu_energy_kwh": 0.001}
    (folder / "emissions.json").write_text(
        json.dumps({"schema": 1, "segments": ledger["segments"]})
    )
    text = report(tmp_path / "runs", tmp_path, baseline="gpu").markdown.read_text()
    by_gpu, metered = rows(text, "Networks")
    assert (by_gpu[7], metered[7]) == ("1.00", "2.25")  # neither of them is marked as the best
    assert metered[-1] == ""
    assert "their measured energies are not compared" in text


def test_datasets_have_sections_of_their_own(tmp_path: Path) -> None:
    for name, digest in (("brain", "a" * 16), ("liver", "b" * 16), ("liver2", "b" * 16)):
        record_run(tmp_path / "runs", name, model=name, digest=digest, cases={"case": 0.8})
    made = report(tmp_path / "runs", tmp_path, baseline="liver")
    text = made.markdown.read_text()
    assert text.startswith("# Runs on 2 datasets\n")
    assert "nothing can be compared across datasets" in text.split("##")[0]
    _, of_brain, of_liver = text.split("\n## Dataset ")
    assert of_brain.startswith("aaaa.zarr")
    assert "liver" not in of_brain
    assert "brain" not in of_liver
    # A baseline of another dataset is none.
    assert "Per Dice point" in of_liver
    assert "Per Dice point" not in of_brain.split("## How")[0]
    assert made.groups == 3
    names = [path.name for path in made.pictures]
    assert len(set(names)) == len(names) == 7
    page = made.page.read_text()
    ids = re.findall(r'<table id="([^"]*)"', page)
    assert len(set(ids)) == len(ids)


def test_a_baseline_of_a_dataset_that_is_not_in_the_report_is_refused(tmp_path: Path) -> None:
    record_run(tmp_path / "runs", "one")
    elsewhere = record_run(tmp_path, "elsewhere", digest="b" * 16)
    with pytest.raises(ReportError, match="has the dataset of the baseline") as error:
        report(tmp_path / "runs", tmp_path / "out", baseline=str(elsewhere))
    assert error.value.remedy == "give a run on 0123.zarr (01234567)"
    assert not (tmp_path / "out").exists()


def test_every_run_is_listed_and_one_that_is_going_is_marked(made: Report) -> None:
    runs = {row[0]: row for row in rows(made.markdown.read_text(), "All runs")}
    assert set(runs) == {"mamba_0", "mamba_1", "net_0", "net_1", "going"}
    assert runs["going"][4] == r"running\*"
    assert runs["mamba_1"][2:6] == ["1", "0", "finished", "4"]
    assert "0.500†" in runs["going"]


def test_a_run_that_recorded_nothing_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runs" / "bare").mkdir(parents=True)
    Journal(RunFolder(tmp_path / "runs" / "bare").journal, name="bare").close()
    text = report(tmp_path / "runs", tmp_path).markdown.read_text()
    assert rows(text, "All runs")[0][0] == "bare"


def test_scores_of_a_validation_are_marked_in_each_table(made: Report) -> None:
    text = made.markdown.read_text()
    networks = {row[0]: row for row in rows(text, "Networks")}
    (going,) = (row for name, row in networks.items() if "new" in name)
    assert "0.500†" in going
    assert sum("†" in cell for row in networks.values() for cell in row) == 2
    assert text.count("† Best validation") == 2


def test_an_evaluation_of_earlier_weights_is_marked(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "runs", "one", cases={"a": 0.8}, status=None)
    journal = Journal(RunFolder(folder).journal, name="one")
    journal.append("metrics", step=STEPS, epoch=None, values={"evaluation/dice/mean": 0.8})
    journal.append("status", status="finished")
    assert "‡" not in report(tmp_path / "runs", tmp_path).markdown.read_text()
    better = {"validation/dice/mean": 0.9}
    journal.append("metrics", step=2 * STEPS, epoch=None, values=better)
    journal.append("status", status="finished")
    journal.close()
    text = report(tmp_path / "runs", tmp_path).markdown.read_text()
    assert "0.800‡" in rows(text, "Networks")[0]
    assert "0.800‡" in rows(text, "All runs")[0]
    assert "run segresmamba evaluate again" in text


def test_scores_of_different_conventions_are_not_compared(tmp_path: Path) -> None:
    cases = {f"case{index}": 0.8 for index in range(6)}
    record_run(tmp_path / "runs", "first", model="a", cases=cases)
    higher = dict.fromkeys(cases, 0.9)
    folder = record_run(tmp_path / "runs", "second", model="b", cases=higher)
    alike = report(tmp_path / "runs", tmp_path, baseline="first").markdown.read_text()
    assert "**0.900**" in alike
    assert len(rows(alike, "Significance")) == 1
    content = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(content | {"scoring": {"empty": "nan"}}))
    text = report(tmp_path / "runs", tmp_path, baseline="first").markdown.read_text()
    first, second = rows(text, "Networks")
    assert (first[10], second[10]) == ("0.800", "0.900")
    assert (first[-2:], second[-2:]) == (["", ""], ["", ""])  # no front, no energy per point
    assert "## Significance" not in text
    assert "different conventions for missing structures (challenge, nan)" in text


def test_networks_that_were_evaluated_on_different_cases_are_said_to_be(tmp_path: Path) -> None:
    record_run(tmp_path / "runs", "first", model="a", fold=0, cases={"a": 0.8, "b": 0.7})
    record_run(tmp_path / "runs", "second", model="b", fold=1, cases={"c": 0.8})
    text = report(tmp_path / "runs", tmp_path).markdown.read_text()
    assert "evaluated on different cases" in text


def test_pairs_are_tested_against_the_baselines_network(made: Report) -> None:
    (pair,) = rows(made.markdown.read_text(), "Significance")
    assert pair == ["segresmamba", "segresnet", "4", "+0.1000", "0.125", "0.125", "0.125"]


def test_pictures_are_files_that_markdown_shows(made: Report) -> None:
    shown = re.findall(r"!\[.*?\]\(<?(.+?)>?\)", made.markdown.read_text())
    assert {made.markdown.parent / name for name in shown} == set(made.pictures)
    assert {path.name for path in made.pictures} >= {"tradeoff.png", "curves.png"}
    for picture in made.pictures:
        with Image.open(picture) as image:
            assert image.format == "PNG"


def test_the_worst_cases_come_first(page: str) -> None:
    found = re.findall(r"<strong>(case\d), (\w+): Dice (0\.\d+)", page)
    assert found[0] == ("case3", "segresnet", "0.490")
    assert [dice for *_, dice in found] == sorted(dice for *_, dice in found)
    assert len(found) == 6


def test_mlflow_alone_gives_the_same_report_as_the_folders_alone(
    root: Path, tmp_path: Path, database: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(root, runs)
    shutil.copy(database, tmp_path)
    killed = Ledger(runs / "net_1")  # a later segment, of which no metric tells
    killed.update(killed.claim(FACTS), {"energy_kwh": 0.007, "emissions_kg": 0.0003})
    for name, limit in (("mamba_0", 2.0), ("mamba_1", 2.0), ("net_1", 3.0)):
        journal = Journal(RunFolder(runs / name).journal, name=name)
        settings = read_history(runs / name).settings
        changed = {"train.clip_norm": limit, "classes": "c" * 7000 + name[:3]}
        journal.append("params", values={**settings, **changed})
        journal.close()
    expected = report(runs, tmp_path / "from folders", baseline="net_0").markdown.read_text()
    for folder in runs.iterdir():
        open_state(folder, TrackingConfig(experiment="mine"), tmp_path).save(folder)
        sync(folder)
    shutil.rmtree(runs)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    made = write_report(["mine"], tmp_path / "from MLflow", uri=lambda: uri, baseline="net_0")
    found = made.markdown.read_text()
    assert found.splitlines()[:-1] == expected.splitlines()[:-1]  # the last line has the time
    assert found.startswith("# 4 variants")  # the changed settings make them


def test_a_second_report_replaces_the_first_and_nothing_else(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("stays")
    first = report(root, tmp_path)
    second = report(root / "going", tmp_path)
    assert second.runs == 1
    assert "mamba_0" not in second.page.read_text()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    written = {"report.html", "report.md", "report_files"}
    written |= {f"report_files/{path.name}" for path in second.pictures}
    assert left == written | {"mine.txt"}
    assert len(second.pictures) < len(first.pictures)


def test_a_failure_leaves_the_report_that_was_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(root, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith("worst-2_"):
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ReportError, match="No space left"):
        report(root, tmp_path)
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    } == before


def test_what_a_killed_report_left_is_deleted(root: Path, tmp_path: Path) -> None:
    left = tmp_path / ".part-elsewhere-1-report"
    left.mkdir()
    (left / "report.md").touch()
    report(root / "going", tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    folder = record_run(tmp_path, "one", cases={"a": 0.9})
    (folder / "results.json").write_text("{")
    with pytest.raises(DataError):
        report(folder, tmp_path / "out")
    with pytest.raises(TrackingError):
        report(tmp_path / "one" / "overlays", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_a_file_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ReportError, match="cannot be written"):
        report(root, tmp_path / "out")


def test_a_picture_that_is_none_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = record_run(tmp_path, "one", cases={"a": 0.9})
    (folder / "overlays" / "a.png").write_bytes(b"cut")
    made = report(folder, tmp_path / "out")
    assert "left out" in caplog.text
    assert {path.name for path in made.pictures} == {"tradeoff.png", "curves.png"}
