"""A trained nnU-Net v2 model as a model folder of this project."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segresmamba.errors import CheckpointError, DataError
from segresmamba.inference.export import Origin, refuse_used, scratch_beside, write_model_folder
from segresmamba.inference.nnunet_plans import Plans
from segresmamba.inference.postprocessing import Rule
from segresmamba.inference.trained import TrainedModel
from segresmamba.storage.json_text import parse_json
from segresmamba.task.weights import WeightsFacts, load_network, reading_problem, save_weights

logger = logging.getLogger(__name__)

_KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"
_STEPS_PER_EPOCH = 250  # nnU-Net's
_WRAPPERS = re.compile(r"(module\.|_orig_mod\.)*")
_HEAD = re.compile(r"decoder\.seg_layers\.(\d+)\.")
# Scores in a checkpoint's record are numbers of NumPy. Older versions of it have other names.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    np.dtype,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]


def import_nnunet(
    source: Path,
    out: Path,
    *,
    licence: str = "not stated",
    checkpoint: str = "checkpoint_final.pth",
) -> Path:
    """Write a model folder with the networks of all trained folds.

    Args:
        source: A result folder, such as nnUNetTrainer__nnUNetPlans__3d_fullres.
        out: The folder to write. It must not exist, or be empty.
        licence: Licence of the weights, such as CC-BY-4.0.
        checkpoint: Which weights of each fold.

    Returns:
        `out`.

    Raises:
        UserError: If a file is missing or damaged, if something of the model cannot be carried
            over exactly, or if `out` has files or cannot be written.
    """
    refuse_used(out)
    if not source.is_dir():
        raise DataError(
            "this is no result folder of nnU-Net",
            where=source,
            got="no folder",
            remedy="name a folder with plans.json and fold_0; for a file of weights give settings "
            "too, such as model=segresnet data=custom data.store=my.zarr",
        )
    plans, dataset = (_json(source / name) for name in ("plans.json", "dataset.json"))
    files = sorted(source.glob(f"fold_*/{checkpoint}"))
    if not files:
        raise DataError(
            "there is no trained fold",
            where=source,
            got=f"no fold_*/{checkpoint}",
            remedy="name the folder with plans.json and fold_0, or give --checkpoint",
        )
    with scratch_beside(out) as scratch:
        models, origins = [], []
        for number, file in enumerate(files):
            weights = scratch / f"{number}.safetensors"
            models.append(_model(file, source, plans, dataset, weights))
            origins.append(_origin(file.parent, plans, dataset))
        rules = _rules(source, [file.parent.name.removeprefix("fold_") for file in files], dataset)
        models = [replace(model, postprocessing=rules) for model in models]
        return write_model_folder(out, models, origins, _fingerprint(source), licence)


def _model(
    file: Path,
    source: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    weights: Path,
) -> TrainedModel:
    """One fold, its weights written to a file of ours."""
    content = read_checkpoint(file)
    where = source / "plans.json"
    try:
        found = Plans(where, plans, dataset, content["init_args"]["configuration"])
        config = found.config(content.get("inference_allowed_mirroring_axes"))
        facts = WeightsFacts(
            step=int(content["current_epoch"]) * _STEPS_PER_EPOCH,
            dice=_summary(file.parent).get("foreground_mean", {}).get("Dice"),
            labels=found.labels(),
            channel_names=found.channel_names,
            preprocessing=found.preprocessing(),
        )
        given = content["network_weights"]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            "the files of this nnU-Net model lack something",
            where=f"{where}, dataset.json or {file}",
            got=f"{type(error).__name__}: {error}",
            remedy="bring the folder back from a copy; models of nnU-Net v1 are not read",
        ) from error
    trainer = content.get("trainer_name", "nnUNetTrainer")
    if trainer != "nnUNetTrainer":
        logger.warning("%s: the network is taken to be that of the plans", trainer)
    save_weights(weights, dict(_our_names(given)), facts)
    try:
        load_network(weights, config)  # refuses weights of another network, or that are not finite
    except CheckpointError as error:  # it names our file, which is gone when the user looks
        raise CheckpointError(
            error.problem,
            where=file,
            got=error.got,
            remedy="bring it and plans.json back from a copy, or name another --checkpoint",
        ) from error
    return TrainedModel(weights, config, facts)


def _rules(source: Path, folds: Sequence[str], dataset: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The post-processing that nnU-Net found for these folds; its pickle is not opened.

    Raises:
        DataError: If it is anything but keeping the largest component.
    """
    path = source / f"crossval_results_folds_{'_'.join(folds)}" / "postprocessing.json"
    if not path.exists():
        if left := sorted(source.glob("crossval_results_folds_*/postprocessing.*")):
            logger.warning("%s is for other folds, or a pickle: not applied", left[0])
        return ()
    names = {tuple(_listed(value)): str(name) for name, value in dataset["labels"].items()}
    content, rules = _json(path), []
    try:
        steps = zip(content["postprocessing_fns"], content["postprocessing_kwargs"], strict=True)
        for function, options in steps:
            if function != _KEEP_LARGEST or options.get("background_label", 0) != 0:
                raise ValueError(f"{function} {options}")
            # A label, a region, or several of which the largest component together is kept.
            parts = [_listed(one) for one in _listed(options["labels_or_regions"])]
            values = tuple(int(value) for part in parts for value in part)
            name = names.get(values, "foreground")
            rules.append(Rule(name=name, values=values, keep_largest=True))
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            "the post-processing of this nnU-Net model cannot be carried over",
            where=path,
            got=str(error),
            remedy="move the file away; the labels are then those without post-processing",
        ) from error
    return tuple(rules)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read one of nnU-Net's checkpoints, which are pickles, without running any code in it.

    Raises:
        CheckpointError: If it is damaged, or holds other things than tensors and plain values.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content: dict[str, Any] = torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes provoke
        raise CheckpointError(
            "the checkpoint cannot be read",
            where=file,
            got=reading_problem(error),
            remedy="bring it back from a copy",
        ) from error
    return content


def _our_names(given: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that inference uses, by our names."""
    tensors = {_WRAPPERS.sub("", name, count=1): value for name, value in given.items()}
    heads = [int(head[1]) for name in tensors if (head := _HEAD.match(name))]
    for name, value in tensors.items():
        head = _HEAD.match(name)
        # The decoder names the encoder a second time, and coarser heads only serve training.
        if not name.startswith("decoder.encoder.") and (not head or int(head[1]) == max(heads)):
            yield f"network.{name}", value


def _origin(fold: Path, plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> Origin:
    names = {str(value): name for name, value in dataset["labels"].items()}
    scores = {
        names.get(value, value): float(row["Dice"])
        for value, row in _summary(fold).get("mean", {}).items()
    }
    return Origin(
        name=fold.name,
        dataset=str(plans.get("dataset_name", "")),
        cases=dataset.get("numTraining"),
        scores=scores or None,
    )


def _summary(fold: Path) -> dict[str, Any]:
    """The scores of nnU-Net's own validation; empty if it did not run."""
    with suppress(OSError, ValueError):
        found: dict[str, Any] = parse_json((fold / "validation" / "summary.json").read_bytes())
        return found
    return {}


def _fingerprint(source: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError):
        found = parse_json((source / "dataset_fingerprint.json").read_bytes())
        spacings, shapes = found["spacings"], found["shapes_after_crop"]
        return {
            "cases": len(spacings),
            "median_shape_DHW": np.median(shapes, axis=0).tolist(),
            "median_spacing_mm": np.median(spacings, axis=0).tolist(),
        }
    return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            "a file of the nnU-Net model cannot be read",
            where=path,
            got=str(error).splitlines()[0],
            remedy="name a folder with plans.json, dataset.json and fold_0/checkpoint_final.pth",
        ) from error
    return content
