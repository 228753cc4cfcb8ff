"""The model card: what a model is, what it was trained on, how good it was, and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_USE = (
    "## Use",
    "",
    "    pip install segresmamba",
    "    segresmamba predict THIS_FOLDER image.nii.gz --out label.nii.gz",
)
_LIMITS = (
    "## Limits",
    "",
    "- It is research software, not a medical device. A person must check each result.",
    "- The scores are those of cases of the same dataset. Other scanners, protocols, voxel",
    "  sizes, ages or diseases were not tested, and may give wrong labels without any sign.",
    "- The held-out cases chose the weights, so the scores are optimistic.",
)
_LIMIT_OF_PLUGINS = "- The network's code is not in this folder: its package must be installed."


def model_card(record: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str:
    """The card in Markdown.

    Args:
        record: The content of `model.json`.
        fingerprint: Summary of the dataset; may be empty.
    """
    has_plugin = any(member["network"] == "plugin" for member in record["members"])
    sections = (
        _model(record),
        _USE,
        _data(record, fingerprint),
        _scores(record),
        (*_LIMITS, *((_LIMIT_OF_PLUGINS,) if has_plugin else ())),
    )
    return "\n".join(line for section in sections for line in (*section, "")).rstrip() + "\n"


def _model(record: Mapping[str, Any]) -> Iterator[str]:
    members = record["members"]
    yield "# " + ", ".join(name for name, value in record["labels"].items() if value)
    yield ""
    networks = ", ".join(sorted({member["network"] for member in members}))
    average = f"The outputs of {len(members)} networks ({networks}) are averaged."
    yield f"- {average}" if len(members) > 1 else f"- Network: {networks}"
    yield f"- Input: {', '.join(record['channels'])}, in this order"
    yield f"- Labels: {', '.join(f'{value} {name}' for name, value in record['labels'].items())}"
    if record["regions"]:
        unions = (f"{name} = {values}" for name, values in record["regions"].items())
        yield f"- Trained regions: {', '.join(unions)}"
    yield f"- Licence of the weights: {record['licence']}"
    yield f"- Written by {record['tool']}"


def _data(record: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    yield ""
    for member in record["members"]:
        cases = f"{member['cases']} cases" if member.get("cases") else "an unknown number of cases"
        dataset = member.get("dataset") or "a dataset whose name was not recorded"
        yield f"- {member['name']}: {dataset}, {cases}; weights of step {member['step']}"
    spacing = fingerprint.get("median_spacing_mm")
    if spacing:
        yield f"- Median voxel size: {' x '.join(f'{size:g}' for size in spacing)} mm (D, H, W)"
    yield f"- Energy: {_total(record, 'energy_kwh', 'kWh')}"
    yield f"- Emissions: {_total(record, 'emissions_kg', 'kg CO2 equivalent')}"


def _total(record: Mapping[str, Any], key: str, unit: str) -> str:
    values = [member.get(key) for member in record["members"]]
    known = [value for value in values if value is not None]
    if not known:
        return "not measured"
    missing = len(values) - len(known)
    return f"{sum(known):.3g} {unit}" + (f", without {missing} of the networks" if missing else "")


def _scores(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scores on held-out cases"
    yield ""
    for member in record["members"]:
        dice = member["dice"]
        text = "no score is known" if dice is None else f"mean Dice {dice:.4f} in training"
        classes = member.get("scores") or {}
        each = ", ".join(f"{name} {value:.4f}" for name, value in classes.items())
        yield f"- {member['name']}: {text}" + (f"; evaluated: {each}" if each else "")
