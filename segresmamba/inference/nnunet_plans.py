"""What nnU-Net's plans.json and dataset.json mean in the terms of this project.

What cannot be carried over exactly is refused by its name: a network that sees other images than it
was trained on, or that is put together otherwise, gives wrong labels without any sign of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segresmamba import data
from segresmamba.config import Config
from segresmamba.data.preprocessing import NnUNetSteps, Normalisation
from segresmamba.errors import DataError
from segresmamba.inference.export import NO_STORE

_ENCODERS = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
_SCHEMES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale01",
    "RGBTo01Normalization": "rgb",
    "NoNormalization": "stored",
}
# Whether each reader keeps the axes as the file stores them, or turns them to RAS.
_READERS = {
    "SimpleITKIO": True,
    "NibabelIO": True,
    "SimpleITKIOWithReorient": False,
    "NibabelIOWithReorient": False,
}
_RESAMPLING = "resample_data_or_seg_to_shape"
_ORDERS = {"data": 3, "probabilities": 1}
# The parts of a network that are built in one way only here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "conv_bias": (True,),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin_kwargs": ({"inplace": True},),
    "nonlin_first": (False,),
    "block": (None,),
    "bottleneck_channels": (None,),
    "stem_channels": (None,),
    "deep_supervision": (True, False),
}
_FIXED_CLASSES = {"conv_op": "Conv3d", "norm_op": "InstanceNorm3d", "nonlin": "LeakyReLU"}


@dataclass(frozen=True)
class Plans:
    """One configuration of nnU-Net's plans, such as 3d_fullres, with its dataset.json."""

    where: Path
    """The file of the plans, for errors."""
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    name: str
    """Name of the configuration, such as 3d_fullres."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Its settings, with those that it inherits.

        Raises:
            DataError: If it is a two-dimensional one or part of a cascade.
        """
        merged: dict[str, Any] = {}
        name: str | None = self.name
        while name:
            own = self.plans["configurations"][name]
            merged = dict(own) | merged
            name = own.get("inherits_from")
        if merged.get("previous_stage"):
            raise self.refused("a cascade", self.name, "import its 3d_lowres or a 3d_fullres")
        if len(merged["patch_size"]) != 3:
            raise self.refused("a network of slices", self.name, "import a 3d configuration")
        return merged

    def refused(self, what: str, got: object, remedy: str = "") -> DataError:
        """The error for something that is not carried over."""
        return DataError(
            f"{what} cannot be imported",
            where=self.where,
            got=got,
            remedy=remedy or "use nnU-Net for this model",
        )

    @property
    def channel_names(self) -> list[str]:
        """In the order of the files `_0000`, `_0001` and so on."""
        names = self.dataset.get("channel_names") or self.dataset["modality"]
        return [names[key] for key in sorted(names, key=int)]

    def labels(self) -> dict[str, int]:
        """Name and value of each label, without that of voxels that nobody has annotated."""
        given = {name: value for name, value in self.dataset["labels"].items() if name != "ignore"}
        single = {
            value[0] if _is_list(value) else value: name
            for name, value in given.items()
            if not _is_list(value) or len(value) == 1
        }
        values = {
            int(v) for value in given.values() for v in (value if _is_list(value) else [value])
        }
        return {str(single.get(value, f"label {value}")): value for value in sorted(values)}

    def regions(self) -> dict[str, list[int]] | None:
        """Label values of each region, if it has any.

        Raises:
            DataError: If `regions_class_order` gives a voxel of some label another value.
        """
        labels = self.dataset["labels"]
        if not any(_is_list(value) and len(value) > 1 for value in labels.values()):
            return None
        regions = {
            name: list(value) if _is_list(value) else [value]
            for name, value in labels.items()
            if name != "ignore" and value not in (0, [0])
        }
        painted = list(zip(regions.values(), self.dataset["regions_class_order"], strict=True))
        for value in {value for members in regions.values() for value in members}:
            last = [order for members, order in painted if value in members][-1]
            if last != value:
                order = self.dataset["regions_class_order"]
                raise self.refused(f"a model that writes label {value} as {last}", order)
        return regions

    def preprocessing(self) -> data.Preprocessing:
        """How images are treated.

        Raises:
            DataError: If it has a reader, scheme or interpolation that is not known here.
        """
        config, plans = self.configuration, self.plans
        reader = plans.get("image_reader_writer", "SimpleITKIO")
        if reader not in _READERS:
            raise self.refused("the reader of this model", reader)
        if config.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
            raise self.refused("the preprocessor of this model", config["preprocessor_name"])
        for kind, order in _ORDERS.items():
            function = config.get(f"resampling_fn_{kind}", _RESAMPLING)
            options = config.get(f"resampling_fn_{kind}_kwargs", {})
            expected = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
            if function != _RESAMPLING or expected | options != expected:
                raise self.refused(f"the resampling of {kind}", f"{function} {options}")
        transpose = plans["transpose_forward"]
        return data.Preprocessing(
            spacing_mm=tuple(config["spacing"]),
            crop=True,
            normalisation=tuple(
                self._normalisation(channel, scheme)
                for channel, scheme in enumerate(config["normalization_schemes"])
            ),
            nnunet=NnUNetSteps(
                as_stored=_READERS[reader],
                transpose=tuple(transpose),
                masked=tuple(config["use_mask_for_norm"]),
            ),
        )

    def _normalisation(self, channel: int, scheme: str) -> Normalisation:
        if scheme not in _SCHEMES:
            raise self.refused("a normalisation", scheme)
        if scheme != "CTNormalization":
            return Normalisation.model_validate({"kind": _SCHEMES[scheme]})
        found = self.plans["foreground_intensity_properties_per_channel"][str(channel)]
        return Normalisation(
            kind="ct",
            low=found["percentile_00_5"],
            high=found["percentile_99_5"],
            mean=found["mean"],
            std=found["std"],
        )

    def config(self, mirror_axes: Sequence[int] | None) -> Config:
        """The settings of a run with this network.

        Args:
            mirror_axes: Axes that the training mirrored.
        """
        return Config.model_validate(
            {
                "run": {"name": "imported"},
                "data": {
                    "store": NO_STORE,
                    "patch": self.configuration["patch_size"],
                    "regions": self.regions(),
                },
                "augment": {
                    "flip_axes": ["DHW"[axis] for axis in mirror_axes or ()],
                    "flip_probability": 0.5 if mirror_axes else 0.0,
                },
                "model": self._network(),
                "train": {"batch_size": self.configuration["batch_size"]},
            }
        )

    def _network(self) -> dict[str, Any]:
        config = self.configuration
        if "architecture" in config:
            name = _class(config["architecture"]["network_class_name"])
            found = dict(config["architecture"]["arch_kwargs"])
        else:  # plans before nnU-Net 2.4
            name = config["UNet_class_name"]
            blocks = config["n_conv_per_stage_encoder"]
            base, most = config["UNet_base_num_features"], config["unet_max_num_features"]
            found = {
                "n_stages": len(blocks),
                "features_per_stage": [min(base << level, most) for level in range(len(blocks))],
                "kernel_sizes": config["conv_kernel_sizes"],
                "strides": config["pool_op_kernel_sizes"],
                "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": blocks,
                "n_conv_per_stage_decoder": config["n_conv_per_stage_decoder"],
            }
        if name not in _ENCODERS:
            raise self.refused("the network", name)
        levels = found.pop("n_stages")
        blocks = found.pop("n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage")
        network = {
            "name": "nnunet",
            "encoder": _ENCODERS[name],
            "features": _each(found.pop("features_per_stage"), levels),
            "kernels": [_axes(one) for one in _each(found.pop("kernel_sizes"), levels)],
            "strides": [_axes(one) for one in _each(found.pop("strides"), levels)],
            "blocks": _each(blocks, levels),
            "decoder_blocks": _each(found.pop("n_conv_per_stage_decoder"), levels - 1),
        }
        for key, value in found.items():
            ends = _FIXED_CLASSES.get(key)
            is_known = value in _FIXED.get(key, ()) if ends is None else _class(value) == ends
            if not is_known:
                raise self.refused("this network", f"{key}={value}")
        return network


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _class(path: object) -> str:
    return str(path).rpartition(".")[2]


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if _is_list(value) else [value] * count


def _axes(value: Any) -> list[int]:
    return list(value) if _is_list(value) else [value] * 3
