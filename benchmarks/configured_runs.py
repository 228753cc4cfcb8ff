"""Short runs of what `segresmamba configure` proposes, beside the presets, at equal steps.

    python benchmarks/configured_runs.py --out runs-of-proposals      # up to an hour of one core

Three small sets are made: the brain sample, the CT sample, and a gland of two zones in thick
slices with two channels. Network widths, steps, batch, learning rate and precision are the same on
both sides, so that what differs is what `configure` chooses: patch, depth, deep supervision,
augmentation. Prints the table of docs/configure.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from segresmamba.config import load_config
from segresmamba.data import convert, make_sample
from segresmamba.data.formats.sample_parts import smooth_field

_SPACING_MM = (0.8, 0.8, 5.0)
_SAME = (
    "train.lr=2e-3", "train.batch_size=2", "train.precision=fp32", "train.threads=1",
    "train.validate_every=null", "train.checkpoint_every=1000", "validation.overlap=0.25",
    "validation.overlays=0", "data.workers=1", "tracking=none",
)  # fmt: skip
_PRESETS = ("data=custom", "data.patch=[64,64,64]", "model=segresmamba_small", "config=null")


def gland(out: Path, subjects: int = 12) -> Path:
    """Write an nnU-Net raw dataset: an ellipsoid with another inside, in two channels."""
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True)
    affine = np.diag([*_SPACING_MM, 1.0])
    for number in range(subjects):
        rng = np.random.default_rng([5, number])
        shape = (160, 160, int(rng.integers(18, 24)))
        centre = (np.array(shape)[:, None, None, None] - 1) / 2
        at_mm = (np.indices(shape) - centre) * np.array(_SPACING_MM)[:, None, None, None]
        at_mm += 2 * np.stack([smooth_field(shape, 5, rng) for _ in range(3)])
        at_mm -= rng.uniform(-6, 6, 3)[:, None, None, None]
        radii_mm = (np.array([24, 18, 22]) * rng.uniform(0.85, 1.15, 3))[:, None, None, None]
        label = ((at_mm / radii_mm) ** 2).sum(0) < 1
        shift_mm = np.array([0, 4, 2])[:, None, None, None]
        inner = (((at_mm - shift_mm) / (0.6 * radii_mm)) ** 2).sum(0) < 1
        zones = label.astype(np.uint8) + (inner & label)
        for channel, signal in enumerate([(200, 260, 230), (150, 150, 320)]):
            image = np.choose(zones, signal) + 30 * smooth_field(shape, 6, rng)
            image += rng.normal(0, 25, shape)
            file = out / f"imagesTr/gland_{number:02d}_{channel:04d}.nii.gz"
            nib.Nifti1Image(image.clip(0).astype(np.int16), affine).to_filename(file)
        nib.Nifti1Image(zones, affine).to_filename(out / f"labelsTr/gland_{number:02d}.nii.gz")
    labels = {"background": 0, "peripheral zone": 1, "central gland": 2}
    channels = {"0": "T2", "1": "ADC"}
    described = {"channel_names": channels, "labels": labels, "numTraining": subjects}
    (out / "dataset.json").write_text(json.dumps({**described, "file_ending": ".nii.gz"}))
    return out


def command(*words: str) -> None:
    """Run the `segresmamba` of this environment."""
    subprocess.run([str(Path(sys.executable).with_name("segresmamba")), *words], check=True)


def row(store: Path, out: Path, steps: int) -> str:
    """Train both and give a line of the table."""
    proposal = out / f"{store.stem}.yaml"
    small = ("--model", "segresmamba_small", "--gpu-memory-gib", "1.06")
    command("configure", str(store), *small, "--out", str(proposal))
    cells = [store.stem]
    for side, chosen in (("presets", _PRESETS), ("configured", (f"config={proposal}",))):
        length = (f"train.max_steps={steps}", f"train.warmup_steps={steps // 10}")
        place = (f"run.root={out}", f"run.name={store.stem}-{side}")
        words = (f"data.store={store}", *chosen, *_SAME, *length, *place)
        command("train", *words)
        patch = load_config(words).data.patch
        file = out / f"{store.stem}-{side}" / "checkpoints" / f"step-{steps:08d}/validation.json"
        found = json.loads(file.read_text())
        cells += [
            " x ".join(map(str, patch)),
            f"{found['validation/dice/mean']:.3f}",
            f"{found['validation/hd95_mm/mean']:.0f}",
        ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Make the sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sets", nargs="+", default=["brain", "ct", "gland"])
    chosen = parser.parse_args()
    rows = []
    for name in chosen.sets:
        raw, store = chosen.out / f"{name}_raw", chosen.out / f"{name}.zarr"
        if not store.exists():
            convert(gland(raw) if name == "gland" else make_sample(raw, kind=name), store)
        rows.append(row(store, chosen.out, chosen.steps))
    titles = ["patch of the presets", "Dice", "HD95 (mm)", "patch proposed", "Dice", "HD95 (mm)"]
    print("| set | " + " | ".join(titles) + " |\n" + "|---" * (len(titles) + 1) + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
