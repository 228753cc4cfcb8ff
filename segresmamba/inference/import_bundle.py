"""A MONAI bundle, as those of MONAI's model zoo, as a model folder of this project.

    configs/inference.json   the network, the transforms of an image, the windows; or train.json
    configs/metadata.json    channels and classes
    models/model.pt          a state dict

The bundle's expressions are programs: none is run. What one of them says, and whatever has no
counterpart here, is refused by its name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from segresmamba.config import Config
from segresmamba.data import Preprocessing
from segresmamba.data.preprocessing import Normalisation
from segresmamba.errors import ConfigError, DataError
from segresmamba.inference.export import NO_LICENCE, NO_STORE, refuse_used
from segresmamba.inference.import_weights import import_state
from segresmamba.inference.trained import MODEL_FILE
from segresmamba.task.weights import WeightsFacts

logger = logging.getLogger(__name__)

_LEVELS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "UNet": lambda kwargs: prod(kwargs["strides"]),
    "SegResNet": lambda kwargs: 1 << len(kwargs.get("blocks_down", (1, 2, 2, 4))) - 1,
    "DynUNet": lambda kwargs: prod(
        max(stride) if isinstance(stride, list) else stride for stride in kwargs["strides"]
    ),
    "SwinUNETR": lambda kwargs: 32,
    "UNETR": lambda kwargs: 16,
}
"""Networks that are read, each with the side of a voxel of its deepest level."""
_GONE = {"SwinUNETR": ("img_size",)}
"""Arguments of earlier versions of MONAI that changed nothing in the network."""
_CHANGE_NOTHING = {"LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor"}
_LABELS_STAY = {*_CHANGE_NOTHING, "Activations", "AsDiscrete", "Invert", "SaveImage"}
"""Transforms of a result after which its labels are those of the largest logit."""
_OURS = "segresmamba."


def import_bundle(source: Path, out: Path, *, licence: str = NO_LICENCE) -> Path:
    """Write a model folder with the network of a bundle.

    Args:
        source: The folder of the bundle.
        out: The folder to write. It must not exist, or be empty.
        licence: Licence of the weights; by default what the bundle says.

    Returns:
        `out`.

    Raises:
        UserError: If a file is missing or damaged, if something of the model has no counterpart or
            is not known, or if `out` has files or cannot be written.
    """
    refuse_used(out)
    bundle = _Bundle.read(source)
    try:
        facts = WeightsFacts(
            step=0,
            dice=None,
            labels=bundle.labels(),
            channel_names=bundle.channels(),
            preprocessing=bundle.preprocessing(),
        )
        config = bundle.config()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise bundle.refused("a value", f"{place}: {first['input']!r} ({first['msg']})") from error
    given = str(bundle.metadata.get("license", licence)) if licence == NO_LICENCE else licence
    name = source.resolve().name
    return import_state(source / "models" / "model.pt", out, config, facts, name, given)


@dataclass(frozen=True)
class _Bundle:
    where: Path
    """The file of the configuration, for errors."""
    content: Mapping[str, Any]
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, source: Path) -> _Bundle:
        """The files of a bundle.

        Raises:
            UserError: If there are none, they cannot be read, or the folder is of this project.
        """
        if (source / MODEL_FILE).exists():
            raise ConfigError(
                "this is a model folder already",
                where=source,
                got=MODEL_FILE,
                remedy="give it to `segresmamba predict` as it is",
            )
        configs = source / "configs"
        names = [f"{name}.{kind}" for name in ("inference", "train") for kind in ("json", "yaml")]
        found = next((configs / name for name in names if (configs / name).exists()), None)
        if found is None:
            raise DataError(
                "this is no MONAI bundle",
                where=configs,
                got="neither inference.json nor train.json",
                remedy="name the folder that has configs/ and models/",
            )
        return cls(found, _read(found), _read(configs / "metadata.json"))

    def refused(self, what: str, got: object, remedy: str = "") -> DataError:
        """The error for something that is not carried over."""
        return DataError(
            f"{what} cannot be imported",
            where=self.where,
            got=got,
            remedy=remedy or "use MONAI for this model (`python -m monai.bundle run`)",
        )

    def value(self, value: Any, name: str) -> Any:
        """A value without references.

        Raises:
            DataError: If it is an expression.
        """
        if isinstance(value, dict):
            return {key: self.value(one, f"{name}.{key}") for key, one in value.items()}
        if isinstance(value, list):
            return [self.value(one, name) for one in value]
        if isinstance(value, str) and value.startswith("@"):
            found: Any = self.content
            for part in re.split("#|::", value[1:]):
                place = int(part) if isinstance(found, list) and part.isdecimal() else part
                try:
                    found = found[place]
                except (LookupError, TypeError):
                    raise self.refused(f"{name} with a reference to nothing", value) from None
            return self.value(found, name)
        if isinstance(value, str) and value.startswith("$"):
            raise self.refused(
                f"{name} as an expression, which this command does not run,",
                value,
                f"write its value into {self.where.name} and import again",
            )
        return value

    def part(self, name: str) -> Any:
        """A section, which train.json has under "validate"."""
        validate = self.content.get("validate", {})
        found = self.content.get(name, validate.get(name) if isinstance(validate, dict) else None)
        if found is None:
            raise self.refused(f"a bundle without {name}", ", ".join(self.content))
        return found

    def config(self) -> Config:
        """The settings of a run with this network."""
        inferer = self.part("inferer")
        if _class(inferer) not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
            raise self.refused("the inferer of this bundle", _class(inferer))
        mode = inferer.get("mode", "constant")
        if mode != "gaussian":
            logger.info(
                "this bundle counts all voxels of a window alike (mode=%s), and predict by a "
                "Gaussian: labels differ a little where windows overlap",
                mode,
            )
        roi = self.value(inferer["roi_size"], "inferer.roi_size")
        overlap = self.value(inferer.get("overlap", 0.25), "inferer.overlap")
        return Config.model_validate(
            {
                "run": {"name": "imported"},
                "data": {"store": NO_STORE, "patch": roi if isinstance(roi, list) else [roi] * 3},
                "model": self._network(),
                "validation": {"overlap": max(overlap) if isinstance(overlap, list) else overlap},
            }
        )

    def _network(self) -> dict[str, Any]:
        found = self.part("network_def")
        name = _class(found)
        if str(found["_target_"]).startswith(_OURS) or name not in _LEVELS:
            networks = f"read are {', '.join(_LEVELS)}"
            raise self.refused("the network of this bundle", found["_target_"], networks)
        left_out = {"_target_", "in_channels", "out_channels", *_GONE.get(name, ())}
        given = {key: one for key, one in found.items() if key not in left_out}
        kwargs = self.value(given, "network_def")
        if (kwargs.get("spatial_dims") or kwargs.get("dimensions", 3)) != 3:
            raise self.refused("a network of slices", found["_target_"])
        try:
            stride = _LEVELS[name](kwargs)
        except (KeyError, TypeError) as error:
            raise self.refused("a network without strides", str(error)) from error
        target = f"monai.networks.nets:{name}"
        return {"name": "plugin", "target": target, "kwargs": kwargs, "stride": stride}

    def channels(self) -> list[str]:
        """The names of the image's channels."""
        network = self.value(self.part("network_def"), "network_def")
        image = next(iter(self._format("inputs").values()))
        names = self._names(image, "inputs", int(network["in_channels"]))
        # "image" says nothing; the modality tells a user which images to give.
        return [str(image.get("modality", names[0]))] if names == ["image"] else names

    def labels(self) -> dict[str, int]:
        """Name and value of each label."""
        network = self.value(self.part("network_def"), "network_def")
        names = self._names(
            next(iter(self._format("outputs").values())), "outputs", int(network["out_channels"])
        )
        for one in self._transforms("postprocessing"):
            name = _class(one)
            if name not in _LABELS_STAY:
                logger.warning("predict does not apply %s, which this bundle does at the end", name)
            if (name == "Activations" and one.get("sigmoid")) or (
                name == "AsDiscrete" and one.get("threshold") is not None
            ):
                raise self.refused(
                    "a network with overlapping classes (sigmoid)",
                    ", ".join(names),
                    "a bundle does not say in a form to be read which label value each of them "
                    "has; `python -m monai.bundle run` computes it",
                )
        if len(set(names)) < len(names):
            raise self.refused("classes of one name", ", ".join(names))
        return {"background" if not value else name: value for value, name in enumerate(names)}

    def _format(self, kind: str) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = self.metadata["network_data_format"][kind]
        except (KeyError, TypeError) as error:
            raise self._unnamed(kind, f"no network_data_format.{kind}") from error
        return found

    def _names(self, image: Mapping[str, Any], kind: str, count: int) -> list[str]:
        given = image.get("channel_def") or {}
        names = [str(given[str(number)]) for number in range(count) if str(number) in given]
        if len(names) < count or len(given) != count:
            raise self._unnamed(kind, f"{len(given)} names for {count} channels")
        return names

    def _unnamed(self, kind: str, got: str) -> DataError:
        return DataError(
            f"the bundle does not name the channels of its {kind}",
            where=self.where.with_name("metadata.json"),
            got=got,
            remedy=f"write the name of each into network_data_format.{kind}, channel_def",
        )

    def _transforms(self, name: str) -> Sequence[Mapping[str, Any]]:
        compose = self.part(name)
        found = compose.get("transforms") if isinstance(compose, dict) else compose
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self.refused(f"{name} that is not a list of transforms", found)
        return [one for one in found if not one.get("_disabled_")]

    def preprocessing(self) -> Preprocessing:
        """How images are treated.

        Raises:
            DataError: If a transform has no counterpart.
        """
        axes, spacing_mm, normalisation = "xyz-stored", None, Normalisation(kind="stored")
        for one in self._transforms("preprocessing"):
            name = _class(one)
            given = self.value({k: v for k, v in one.items() if k not in ("keys", "dtype")}, name)
            if name == "Orientation" and given.get("axcodes") == "RAS":
                axes = "xyz"
            elif name == "Spacing" and normalisation.kind == "stored":
                spacing_mm = given["pixdim"]
                if not isinstance(spacing_mm, list) or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
                    raise self.refused("a voxel size other than three numbers", spacing_mm)
            elif name in ("ScaleIntensityRange", "NormalizeIntensity"):
                normalisation = self._normalisation(name, given)
            elif name not in _CHANGE_NOTHING:
                raise self.refused(f"the transform {one['_target_']} (in this place)", given)
        count = len(self.channels())
        return Preprocessing.model_validate(
            {"spacing_mm": spacing_mm, "normalisation": [normalisation] * count, "axes": axes}
        )

    def _normalisation(self, name: str, given: Mapping[str, Any]) -> Normalisation:
        bounds = [given[key] for key in ("b_min", "b_max") if given.get(key) is not None]
        # Without both bounds MONAI does not clip.
        if name == "ScaleIntensityRange" and given.get("clip") and len(bounds) == 2:
            low, high = float(given["a_min"]), float(given["a_max"])
            zero, one = map(float, bounds)
            if low >= high or zero >= one:
                raise self.refused("a range that is empty", dict(given))
            step = (high - low) / (one - zero)
            return Normalisation(kind="ct", low=low, high=high, mean=low - zero * step, std=step)
        alone = given.get("channel_wise") or len(self.channels()) == 1
        by_case = given.get("subtrahend") is None and given.get("divisor") is None
        if name == "NormalizeIntensity" and alone and by_case and not given.get("nonzero"):
            return Normalisation(kind="zscore-whole")
        raise self.refused(f"{name} with these arguments", dict(given))


def _class(section: Mapping[str, Any]) -> str:
    """The name of a class, without its module and the d of transforms of dictionaries."""
    name = str(section.get("_target_", "")).rpartition(".")[2]
    return re.sub(r"(?<=[a-z])(d|D|Dict)$", "", name)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            "a file of the bundle cannot be read",
            where=path,
            got=str(error).splitlines()[0],
            remedy="name a folder with configs/inference.json, configs/metadata.json and "
            "models/model.pt",
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            "a file of the bundle cannot be read",
            where=path,
            got=type(content).__name__,
            remedy="bring it back from a copy",
        )
    return content
