"""A trained model as a folder of its own, which needs no run, no store and no GPU.

OUT/
    model.json                what is in it, with a digest of each file
    weights-0.safetensors     full weights of the first network; several networks are averaged
    config-0.yaml             its settings, without what belongs to a machine
    fingerprint.json          what its dataset was like, if the run recorded it
    README.md                 the model card
    network-0.onnx            the network for other runtimes, with `--to onnx`; or network-0.pt2
    configs/                  with `--to bundle`, see `inference.bundle`
    plans.json, dataset.json, fold_0/   with `--to nnunet`, see `inference.export_nnunet`

No file has a path, a name of a case, or anything of `secrets.json`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segresmamba import __version__, data
from segresmamba.config import ClusterConfig, Config, RunConfig, TrackingConfig, read_config
from segresmamba.config.schema import PlanConfig
from segresmamba.errors import ConfigError, UserError
from segresmamba.inference.bundle import write_bundle
from segresmamba.inference.export_nnunet import write_result_folder
from segresmamba.inference.model_card import model_card
from segresmamba.inference.portable import Form, write_portable
from segresmamba.inference.trained import (
    MODEL_FILE,
    MODEL_VERSION,
    TrainedModel,
    common_rules,
    open_models,
)
from segresmamba.storage.atomic import (
    complete_folder,
    remove,
    remove_abandoned,
    temporary_path,
)
from segresmamba.storage.digest import file_digest
from segresmamba.storage.json_text import parse_json, write_json
from segresmamba.storage.run_folder import RunFolder, write_config
from segresmamba.task.weights import load_network, read_facts, read_weights, save_weights
from segresmamba.tracking import TrackingError
from segresmamba.tracking.history import read_history
from segresmamba.tracking.journal import read_journal

logger = logging.getLogger(__name__)

NO_LICENCE = "not stated"
NO_STORE = "none: this model was exported"
_FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class Origin:
    """What a run recorded about a network, besides its weights; all of it may be unknown."""

    name: str
    dataset: str = ""
    digest: str = ""
    """Digest of the dataset's content."""
    cases: int | None = None
    energy_kwh: float | None = None
    emissions_kg: float | None = None
    scores: Mapping[str, float] | None = None
    """Dice of each class on the held-out cases, from the last `segresmamba evaluate`."""

    @classmethod
    def from_member(cls, member: Mapping[str, Any]) -> Origin:
        """What a model folder says of one of its networks."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in member.items() if key in known})


def export_model(
    source: Path, out: Path, *, licence: str = NO_LICENCE, form: Form | None = None
) -> Path:
    """Write a model folder.

    Args:
        source: The folder of a run, a folder of runs, whose networks are averaged, or, for another
            form, a model folder.
        out: The folder to write. It must not exist, or be empty.
        licence: Licence of the weights, such as CC-BY-4.0.
        form: A form that other programs run, to be written into the folder too.

    Returns:
        `out`.

    Raises:
        UserError: If there are no trained networks, they do not fit together, or cannot be written
            in this form; if `out` has files or cannot be written.
    """
    models = open_models(source)
    if not (source / MODEL_FILE).exists():
        origins = [origin_of(model.weights.parents[1]) for model in models]
        fingerprint = fingerprint_of(models[0].weights.parents[1])
        return write_model_folder(out, models, origins, fingerprint, licence, form)
    if form is None:
        raise ConfigError(
            "this is a model folder already",
            where=source,
            got=MODEL_FILE,
            remedy="copy the folder, or export it in another form with --to",
        )
    before = parse_json((source / MODEL_FILE).read_bytes())
    origins = [Origin.from_member(member) for member in before["members"]]
    kept = source / _FINGERPRINT
    fingerprint = parse_json(kept.read_bytes()) if kept.exists() else {}
    given = before.get("licence", licence) if licence == NO_LICENCE else licence
    return write_model_folder(out, models, origins, fingerprint, given, form)


def export_weights(
    run: Path, weights: Path, out: Path, *, licence: str = NO_LICENCE, form: Form | None = None
) -> Path:
    """Like `export_model`, with other weights of a run than the best, of which no score is known.

    Raises:
        UserError: As `export_model`.
    """
    model = TrainedModel(weights, read_config(RunFolder(run).config), read_facts(weights))
    origin = replace(origin_of(run), scores=None)
    return write_model_folder(out, [model], [origin], fingerprint_of(run), licence, form)


def write_model_folder(
    out: Path,
    models: Sequence[TrainedModel],
    origins: Sequence[Origin],
    fingerprint: Mapping[str, Any],
    licence: str,
    form: Form | None = None,
) -> Path:
    """Write the folder of some models, whole or not at all; see `export_model`.

    Raises:
        UserError: If a file of a model is damaged, if a network cannot be written in this form, or
            if `out` has files or cannot be written.
    """
    refuse_used(out)
    temporary = out.with_name(f".part-{out.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for number, model in enumerate(models):
            write_config(without_machine(model.config), temporary / f"config-{number}.yaml")
            save_weights(temporary / f"weights-{number}.safetensors", *read_weights(model.weights))
            if form in ("onnx", "pt2"):
                network = load_network(model.weights, model.config).network
                path = temporary / f"network-{number}.{form}"
                write_portable(network, _window(model), path, form)
        if fingerprint:
            write_json(temporary / _FINGERPRINT, fingerprint)
        record = _record(models, origins, licence)
        card = model_card(record, fingerprint)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if form == "bundle":
            write_bundle(temporary, models, record)
        elif form == "nnunet":
            write_result_folder(temporary, models, record)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        record["files"] = {str(path.relative_to(temporary)): file_digest(path) for path in files}
        write_json(temporary / MODEL_FILE, record)
        if out.exists():
            out.rmdir()
        complete_folder(temporary, out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _window(model: TrainedModel) -> Tensor:
    """A normalised window (1, C, D, H, W): from the middle of a case of the run's store.

    A model folder knows no store; then it is of noise.
    """
    patch, store = model.config.data.patch, model.config.data.store
    try:
        dataset = data.open_dataset(store)
    except UserError:
        why = "a model folder has no store" if store == NO_STORE else f"{store} is not here"
        logger.info("%s: what is written is compared on noise, not on an image", why)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, len(model.facts.channel_names), *patch, generator=generator)
    case = dataset[dataset.case_ids[0]]
    image_CDHW, _ = case.read()
    for axis, size in enumerate(patch, start=1):
        first = max(0, (image_CDHW.shape[axis] - size) // 2)
        image_CDHW = image_CDHW.take(range(first, min(first + size, image_CDHW.shape[axis])), axis)
    missing = [(0, size - has) for size, has in zip(patch, image_CDHW.shape[1:], strict=True)]
    window_CDHW = np.pad(image_CDHW, [(0, 0), *missing], "edge").astype(np.float32)
    normalisation_1C4 = torch.from_numpy(case.normalisation_C4)[None]
    return data.normalise(torch.from_numpy(window_CDHW)[None], normalisation_1C4)


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder on the file system of `out`, which is deleted at the end.

    What a killed process left of such a folder is deleted at the beginning.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        name = f"weights-of-{out.name}"
        remove_abandoned(out.parent, {name})
        scratch = temporary_path(out.with_name(name))
        scratch.mkdir()
        try:
            yield scratch
        finally:
            remove(scratch)
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> UserError:
    return UserError(
        "the model folder cannot be written",
        where=error.filename or out,
        got=error.strerror,
        remedy="free space, or choose a folder that you can write to",
    )


def refuse_used(out: Path) -> None:
    """Refuse to write to a place where something is.

    Raises:
        ConfigError: If it is a file, a folder that is not empty, or the present folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            "the place to export to is in use",
            where="--out",
            got=out,
            remedy="name a folder that does not exist, or delete this one first",
        )
    # Another folder would get this name, and the shell would stay in the one without a name.
    if out.resolve() == Path.cwd():
        raise ConfigError(
            "the model cannot take the place of the folder that you are in",
            where="--out",
            got=out,
            remedy="name a folder in it, which need not exist",
        )


def without_machine(config: Config) -> Config:
    """The settings that say how a network is built and used, and how it was trained.

    Where the run, the store, the cluster and the tracking server were stays behind.
    """
    return config.model_copy(
        update={
            "run": RunConfig(name="exported"),
            "data": config.data.model_copy(update={"store": NO_STORE, "stage": None}),
            "train": config.train.model_copy(update={"init_from": None, "loaded_lr_factor": 1.0}),
            "tracking": TrackingConfig(),
            "cluster": ClusterConfig(),
            "plan": PlanConfig(),
        }
    )


def origin_of(run: Path) -> Origin:
    """What a run recorded; a run without a journal is known by its name alone."""
    folder = RunFolder(run)
    dataset, energy, scores = _dataset_of(folder), dict[str, float](), None
    with suppress(TrackingError):
        energy = dict(read_history(run).energy)
    with suppress(OSError, ValueError, KeyError, TypeError):
        classes = parse_json(folder.results.read_bytes())["classes"]
        scores = {name: float(row["dice"]) for name, row in classes.items()}
    return Origin(
        name=run.name,
        dataset=dataset.get("name", ""),
        digest=dataset.get("digest", ""),
        cases=dataset.get("profile", {}).get("cases"),
        energy_kwh=energy.get("energy_kwh"),
        emissions_kg=energy.get("emissions_kg"),
        scores=scores,
    )


def fingerprint_of(run: Path) -> dict[str, Any]:
    """Summary of the dataset of a run, as its journal has it; empty if it has none."""
    return dict(_dataset_of(RunFolder(run)).get("profile", {}))


def _dataset_of(folder: RunFolder) -> Mapping[str, Any]:
    with suppress(TrackingError, OSError):
        records = [r.body for r in read_journal(folder.journal) if r.kind == "dataset"]
        return records[-1] if records else {}
    return {}


def _record(
    models: Sequence[TrainedModel], origins: Sequence[Origin], licence: str
) -> dict[str, Any]:
    first = models[0]
    members = [
        {
            "config": f"config-{number}.yaml",
            "weights": f"weights-{number}.safetensors",
            "network": model.config.model.name,
            "step": model.facts.step,
            "dice": model.facts.dice,
            **{key: value for key, value in vars(origin).items() if value not in (None, "")},
        }
        for number, (model, origin) in enumerate(zip(models, origins, strict=True))
    ]
    regions = first.config.data.regions
    return {
        "format_version": MODEL_VERSION,
        "tool": f"segresmamba {__version__}",
        "licence": licence,
        "channels": list(first.facts.channel_names),
        "labels": dict(first.facts.labels),
        "regions": {name: list(values) for name, values in regions.items()} if regions else None,
        "preprocessing": first.facts.preprocessing.model_dump(mode="json"),
        "members": members,
        "postprocessing": [rule.model_dump(mode="json") for rule in common_rules(models)],
    }
