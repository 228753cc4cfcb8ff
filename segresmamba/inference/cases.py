"""The cases that are to be segmented: files in nnU-Net's naming, DICOM folders, or a store."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segresmamba.data import Dataset, open_dataset
from segresmamba.data.formats.source import VOLUME_ENDINGS, read_json, strip_ending
from segresmamba.data.volumes.voxel_file import files_of
from segresmamba.errors import ConfigError, DataError
from segresmamba.inference.channel_order import NUMBERED, plain, require_channel_order
from segresmamba.inference.model import PreparedCase, SegmentationModel
from segresmamba.inference.trained import TrainedModel, require_same_preprocessing

logger = logging.getLogger(__name__)

SPLITS = ("all", "train", "val")
_DICOM_MARK, _MARK_AT = b"DICM", 128
_LOOKED_AT = 20  # files


@dataclass(frozen=True)
class InputCase:
    """One case to segment. Nothing of it has been read."""

    name: str
    files: tuple[Path, ...]
    """One for each channel; none for a case of a store."""
    dataset: Dataset | None = None

    def read(self, model: SegmentationModel) -> PreparedCase:
        """Read it as a model wants it.

        Raises:
            UserError: If it cannot be read.
        """
        if self.dataset is not None:
            case = self.dataset[self.name]
            model.preprocessing.warn_of_other_spacing(case.spacing_mm, self.name)
            return PreparedCase.of_stored(case)
        return model.read(self.files)

    def fingerprint(self) -> list[Any]:
        """What tells whether the case has changed since it was segmented.

        Raises:
            OSError: If a file is gone.
        """
        if self.dataset is not None:
            return [str(self.dataset.where), self.dataset.digest]
        found = [(path, path.stat()) for named in self.files for path in files_of(named)]
        return [[str(path.absolute()), one.st_size, one.st_mtime_ns] for path, one in found]

    @property
    def ending(self) -> str:
        """How a label map is named that is like the case's first file."""
        name = self.files[0].name.lower() if self.files else ""
        if name.endswith((".nrrd", ".nhdr")):
            return ".nrrd"
        return ".mha" if name.endswith((".mha", ".mhd")) else ".nii.gz"


def find_cases(
    sources: Sequence[str], models: Sequence[TrainedModel], split: str = "all"
) -> list[InputCase]:
    """List the cases of an input, sorted by name. No image is opened.

    Args:
        sources: A file, a folder in nnU-Net's naming, a DICOM folder, or a store (also a URL); or
            the files of one case, one for each channel.
        models: The models, which say what the channels are.
        split: Which cases of a store.

    Raises:
        UserError: If there is no case, two have one name, there are other channels than the
            networks', or a store was prepared in another way.
    """
    source, channels = sources[0], tuple(models[0].facts.channel_names)
    path = Path(source)
    if len(sources) > 1:
        return [_case_of_channels([Path(one) for one in sources], channels)]
    if "://" in source or path.suffix == ".zip" or "cases" in read_json(path / "dataset.json"):
        return _stored_cases(source, models, split)
    if split != "all":
        raise ConfigError(
            "only a store has a split", where="--split", got=split, remedy="leave it out"
        )
    if not path.exists():
        raise DataError(
            "there is no such input", where=path, got="no such file or folder", remedy="check it"
        )
    if path.is_file():
        return [_case_of_file(path, channels)]
    _check_declared_channels(path, channels)
    cases = _dicom_cases(path, channels) or _cases_of_files(path, channels)
    if not cases:
        raise DataError(
            "the input folder has no image",
            where=path,
            got="no file that can be read",
            remedy=f"name a folder with <case>_0000{VOLUME_ENDINGS[0]} and so on (or "
            f"{', '.join(VOLUME_ENDINGS[1:])}), or of DICOM files",
        )
    return cases


def _case_of_channels(paths: Sequence[Path], channels: Sequence[str]) -> InputCase:
    if len(paths) != len(channels):
        raise DataError(
            f"the network was trained on {len(channels)} channels",
            where=paths[0],
            got=f"{len(paths)} images",
            remedy=f"give one for each channel, in this order: {', '.join(channels)}",
        )
    require_channel_order(paths, channels)
    return InputCase(_case_of_file(paths[0], channels[:1]).name, tuple(paths))


def _check_declared_channels(folder: Path, channels: Sequence[str]) -> None:
    """Compare the network's channels with those that a dataset.json of nnU-Net declares.

    Raises:
        DataError: If they are the same in another order.
    """
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        content = read_json(path)
        names = content.get("channel_names") or content.get("modality")
        if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
            continue
        declared = [str(names[key]) for key in sorted(names, key=int)]
        found, own = ([plain(name) for name in some] for some in (declared, channels))
        if found != own and sorted(found) == sorted(own):
            raise DataError(
                "the folder has the network's channels in another order",
                where=path,
                got=f"_0000 and so on are {', '.join(declared)}; the network takes them for "
                + ", ".join(channels),
                remedy="number the files in the network's order, and correct channel_names",
            )
        if found != own:
            logger.warning(
                "%s calls the channels %s, and the network was trained on %s: see that they are "
                "the same, in the same order",
                path,
                ", ".join(declared),
                ", ".join(channels),
            )
        return


def _case_of_file(path: Path, channels: Sequence[str]) -> InputCase:
    """A file stands for its case, whose other channels lie beside it."""
    stem = strip_ending(path.name)
    match = NUMBERED.fullmatch(stem)
    if len(channels) == 1:
        return InputCase(match[1] if match and match[2] == "0000" else stem, (path,))
    if not match:
        raise DataError(
            f"the network was trained on {len(channels)} channels",
            where=path,
            got="one file, whose name does not end in a number such as _0000",
            remedy=f"name the files <case>_0000 to <case>_{len(channels) - 1:04d}, for the "
            f"channels {', '.join(channels)}; or give each: predict RUN FILE... --out LABEL",
        )
    ending = path.name[len(stem) :]
    names = (f"{match[1]}_{number:04d}{ending}" for number in range(len(channels)))
    return InputCase(match[1], tuple(path.with_name(name) for name in names))


def _cases_of_files(folder: Path, channels: Sequence[str]) -> list[InputCase]:
    found: dict[str, InputCase] = {}
    # macOS leaves files such as ._case_0000.nii.gz beside those that it copies.
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    for name in names:
        if not name.lower().endswith(VOLUME_ENDINGS):
            continue
        match = NUMBERED.fullmatch(strip_ending(name))
        if match and int(match[2]) >= len(channels):
            raise DataError(
                f"the network was trained on {len(channels)} channels: {', '.join(channels)}",
                where=folder / name,
                got=f"channel number {int(match[2])}, counted from 0",
                remedy="move the files of other channels out of the folder",
            )
        case = _case_of_file(folder / name, channels)
        if found.setdefault(case.name, case).files != case.files:
            raise DataError(
                "two cases have the same name",
                where=folder,
                got=f"{found[case.name].files[0].name} and {name}",
                remedy="rename one of them: each label map is named as its case",
            )
    return list(found.values())


def _dicom_cases(folder: Path, channels: Sequence[str]) -> list[InputCase]:
    """A series, a folder with a series for each channel, or folders with either; else nothing."""
    if files := _series(folder, channels):
        return [InputCase(folder.resolve().name, files)]
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = {path: _series(path, channels) for path in entries if path.is_dir()}
    cases = [InputCase(path.name, files) for path, files in found.items() if files]
    left = [
        path.name
        for path in entries
        if not found.get(path) and (path in found or path.name.lower().endswith(VOLUME_ENDINGS))
    ]
    if cases and left:
        logger.warning("%s has DICOM series; left out are: %s", folder, ", ".join(left))
    return cases


def _series(folder: Path, channels: Sequence[str]) -> tuple[Path, ...]:
    """The folders of a case's series; nothing if there is none of them."""
    if _is_dicom(folder):
        return (folder,)
    # One that is missing is the fault of its case, which is named when it is read.
    series = tuple(folder / channel for channel in channels)
    return series if any(map(_is_dicom, series)) else ()


def _is_dicom(folder: Path) -> bool:
    """Whether one of a folder's first files begins as DICOM does."""
    if not folder.is_dir():
        return False
    for path in sorted(path for path in folder.iterdir() if path.is_file())[:_LOOKED_AT]:
        with path.open("rb") as file:
            file.seek(_MARK_AT)
            if file.read(len(_DICOM_MARK)) == _DICOM_MARK:
                return True
    return False


def _stored_cases(source: str, models: Sequence[TrainedModel], split: str) -> list[InputCase]:
    dataset = open_dataset(source)
    facts = models[0].facts
    if tuple(dataset.channel_names) != tuple(facts.channel_names):
        raise DataError(
            "the store has other channels than the network was trained on",
            where=source,
            got=", ".join(dataset.channel_names),
            remedy=f"name a store with {', '.join(facts.channel_names)}, in this order",
        )
    require_same_preprocessing(facts, dataset)
    if split == "all":
        return [InputCase(case_id, (), dataset) for case_id in dataset.case_ids]
    folds = {model.config.train.fold for model in models}
    fold = folds.pop() if len(folds) == 1 else None
    if fold is None or fold >= len(dataset.splits):
        raise ConfigError(
            "the models do not say which cases were held out of their training",
            where="--split",
            got=f"{split}; train.fold of the models: "
            + ", ".join(str(model.config.train.fold) for model in models),
            remedy="give one model that was trained with train.fold=0 or another fold of this "
            "store, or leave --split out",
        )
    return [InputCase(case_id, (), dataset) for case_id in sorted(dataset.splits[fold][split])]
