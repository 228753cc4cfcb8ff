"""Run folders as training and evaluation leave them, without training: the real journal, ledger
and results file with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.energy.ledger import Ledger
from segresmamba.tracking.journal import Journal

STEPS, STEPS_PER_EPOCH, BATCH = 4, 2, 5
FACTS = {
    "country": "FRA",
    "intensity_g_per_kwh": 44.2,
    "intensity_source": "a table",
    "cpu_power": "measured (RAPL)",
    "gpu_power": "none",
    "ram_power": "estimated from size",
}


def record_run(
    root: Path,
    name: str,
    *,
    model: str = "segresmamba",
    seed: int = 0,
    fold: int = 0,
    settings: Mapping[str, Any] | None = None,
    step_s: Sequence[float] = (9.0, 1.0, 1.0, 1.2),
    memory_gib: float = 2.0,
    energy_kwh: float | None = 0.003,
    cpu_power: str = "measured (RAPL)",
    digest: str = "0123456789abcdef",
    cases: Mapping[str, float] | None = None,
    status: str | None = "finished",
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write a run.

    Args:
        root: Where its folder goes.
        name: Its name.
        model: Its network.
        seed: Its seed.
        fold: Its fold.
        settings: More settings of section "train".
        step_s: Step time of each of the four records.
        memory_gib: Its peak on the host.
        energy_kwh: What its ledger says, three quarters of it of the processors; None leaves none.
        cpu_power: How the power of the processors is known.
        digest: Of its dataset.
        cases: Dice of each case of its evaluation; the worst gets a picture.
        status: How it ended; None leaves it running.
        tags: Its tags.
    """
    folder = root / name
    folder.mkdir(parents=True)
    journal = Journal(RunFolder(folder).journal, name=name)
    journal.append("status", status="running", host="here", pid=1)
    train = {"fold": fold, "batch_size": BATCH, "lr": 0.1, **(settings or {})}
    values = {"seed": seed, "model": {"name": model}, "train": train, "run": {"name": name}}
    values["data"] = {"store": f"/data/{digest[:4]}.zarr"}
    journal.append("params", values=values)
    journal.append("tags", values=tags or {})
    tags = {"device": "cpu", "parameters": "1500000", "dataset_digest": digest}
    journal.append("tags", values=tags)
    for step, seconds in enumerate(step_s, start=1):
        metrics = {
            "train/loss": 2.0 / step,
            "time/step_s": seconds,
            "memory/host_peak_gib": memory_gib * step / len(step_s),
        }
        journal.append("metrics", step=step, epoch=step / STEPS_PER_EPOCH, values=metrics)
    scores = {"validation/dice/mean": 0.5, "validation/hd95_mm/mean": 7.0}
    journal.append("metrics", step=STEPS, epoch=STEPS / STEPS_PER_EPOCH, values=scores)
    if energy_kwh is not None:
        ledger = Ledger(folder)
        key = ledger.claim({**FACTS, "cpu_power": cpu_power})
        used = {"energy_kwh": energy_kwh, "cpu_energy_kwh": 0.75 * energy_kwh}
        ledger.update(key, {**used, "emissions_kg": energy_kwh / 10})
        energy = {f"energy/{name}": value for name, value in ledger.totals().items()}
        facts = {f"energy.{name}": str(fact) for name, fact in FACTS.items()}
        facts["energy.cpu_power"] = cpu_power
        journal.append("tags", values=facts)
        journal.append("metrics", step=STEPS, epoch=None, values=energy)
    if cases:
        _evaluate(folder, journal, cases)
    if status:
        journal.append("status", status=status)
    journal.close()
    return folder


def _evaluate(folder: Path, journal: Journal, cases: Mapping[str, float]) -> None:
    results = {
        case: {name: {"dice": dice, "hd95_mm": 3.0} for name in ("ball", "box")}
        for case, dice in cases.items()
    }
    (folder / "results.json").write_text(json.dumps({"cases": results}))
    journal.append("artifact", path="results.json", folder="")
    (folder / "overlays").mkdir()
    picture = f"overlays/{min(cases, key=cases.__getitem__)}.png"
    Image.new("RGB", (1400, 700), "navy").save(folder / picture)
    journal.append("artifact", path=picture, folder="overlays")
