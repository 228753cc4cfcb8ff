"""A model folder that is a MONAI bundle too, which `python -m monai.bundle run` runs.

It runs this package, so that the labels are those of `segresmamba predict`: MONAI's own transforms
and windows would give others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from segresmamba import __version__
from segresmamba.errors import DataError
from segresmamba.inference.options import InferenceOptions
from segresmamba.inference.predict import PredictRequest, failures_text, predict_cases
from segresmamba.inference.trained import TrainedModel
from segresmamba.task.classes import Classes

_CONFIGS = "configs"


def write_bundle(folder: Path, models: Sequence[TrainedModel], record: Mapping[str, Any]) -> None:
    """Add what makes a model folder a bundle.

    Args:
        folder: The model folder.
        models: Its networks.
        record: What its `model.json` says.
    """
    model = models[0]
    inference = {
        "imports": ["$from segresmamba.inference.bundle import segment"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "auto",
        "network_def": {
            "_target_": "segresmamba.models.build",
            "in_channels": len(model.facts.channel_names),
            "out_channels": Classes.from_labels(model.config, model.facts.labels).channels,
            "patch": list(model.config.data.patch),
            **model.config.model.model_dump(mode="json"),
        },
        "run": ["$segment(@bundle_root, @dataset_dir, @output_dir, @device)"],
    }
    (folder / _CONFIGS).mkdir()
    for name, content in (
        ("metadata.json", _metadata(model, record)),
        ("inference.json", inference),
    ):
        text = json.dumps(content, indent=2) + "\n"
        (folder / _CONFIGS / name).write_text(text, encoding="utf-8")


def segment(bundle_root: str, dataset_dir: str, output_dir: str, device: str) -> None:
    """Segment a folder of images, as the bundle's configuration asks.

    Raises:
        UserError: If the model, the images or the output cannot be used.
        DataError: If cases have failed; the others are done.
    """
    options = InferenceOptions(device=device)
    request = PredictRequest((Path(bundle_root),), (dataset_dir,), Path(output_dir), options)
    found = predict_cases(request)
    if found.failed:
        raise DataError(
            "cases have failed",
            where=dataset_dir,
            got=failures_text(found.failed),
            remedy="correct these; the same command then goes on with them",
        )


def _metadata(model: TrainedModel, record: Mapping[str, Any]) -> dict[str, Any]:
    classes = Classes.from_labels(model.config, model.facts.labels)
    names = classes.channel_names
    patch = list(model.config.data.patch)
    image = {"type": "image", "format": "magnitude", "modality": "/".join(record["channels"])}
    shape = {"spatial_shape": patch, "dtype": "float32", "value_range": [], "is_patch_data": True}
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch").partition("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"segresmamba": __version__},
        "name": ", ".join(name for name, value in record["labels"].items() if value),
        "task": "segmentation",
        "description": "See README.md, the model card.",
        "authors": "not stated",
        "copyright": "not stated",
        "license": record["licence"],
        "network_data_format": {
            "inputs": {
                "image": {
                    **image,
                    **shape,
                    "num_channels": len(record["channels"]),
                    "channel_def": {str(i): name for i, name in enumerate(record["channels"])},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    **shape,
                    "num_channels": len(names),
                    "channel_def": {str(i): name for i, name in enumerate(names)},
                }
            },
        },
    }
