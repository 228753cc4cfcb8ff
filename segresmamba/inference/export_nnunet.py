"""A model folder that is a result folder of nnU-Net v2 too, which nnU-Net's own predictor loads.

    plans.json, dataset.json     the network, how images are treated, channels and labels
    fold_N/checkpoint_final.pth  weights of network N

What nnU-Net would compute otherwise is refused by its name, see `inference.nnunet_plans` for the
way there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segresmamba.config.networks import DynUNetConfig, NnUNetConfig, ResEncUNetConfig
from segresmamba.data.preprocessing import Normalisation
from segresmamba.errors import ConfigError
from segresmamba.inference.trained import TrainedModel
from segresmamba.models.nnunet import nnunet
from segresmamba.models.state_dicts import renamed
from segresmamba.storage.json_text import write_json
from segresmamba.task.classes import Classes
from segresmamba.task.weights import read_weights, save_torch

logger = logging.getLogger(__name__)

_CONFIGURATION = "3d_fullres"
_STEPS_PER_EPOCH = 250  # nnU-Net's
_LIBRARY = "dynamic_network_architectures.architectures.unet"
_RESAMPLING = {"data": 3, "seg": 1, "probabilities": 1}
_SCHEMES = {
    "zscore": "ZScoreNormalization",
    "ct": "CTNormalization",
    "rescale01": "RescaleTo01Normalization",
    "rgb": "RGBTo01Normalization",
    "stored": "NoNormalization",
}
# The schemes of a store of this project. Its zscore and rescale01 have another meaning in nnU-Net.
_STORE_SCHEMES = {kind: _SCHEMES[kind] for kind in ("ct", "rgb", "stored")} | {
    "zscore-whole": _SCHEMES["zscore"]
}
_NO_COUNTERPART = {
    "zscore": "the mean and deviation of the voxels that are not 0, by which all voxels are scaled",
    "rescale01": "the range of a case with 0 in it",
}
_DYNUNET = (
    (r"input_block\.(.*)", r"encoder.stages.0.0.\1"),
    (r"upsamples\.(\d+)\.transp_conv\.conv\.(.*)", r"decoder.transpconvs.\1.\2"),
    (r"upsamples\.(\d+)\.conv_block\.(.*)", r"decoder.stages.\1.\2"),
)
_DYNUNET_PARTS = (
    (r"(.*\.)conv1\.conv\.(.*)", r"\1convs.0.conv.\2"),
    (r"(.*\.)conv2\.conv\.(.*)", r"\1convs.1.conv.\2"),
    (r"(.*\.)norm1\.(.*)", r"\1convs.0.norm.\2"),
    (r"(.*\.)norm2\.(.*)", r"\1convs.1.norm.\2"),
)


def write_result_folder(
    folder: Path, models: Sequence[TrainedModel], record: Mapping[str, Any]
) -> None:
    """Add what makes a model folder a result folder of nnU-Net v2.

    Args:
        folder: The model folder.
        models: Its networks, one for each fold.
        record: What its `model.json` says.

    Raises:
        UserError: If nnU-Net lacks the network, or would treat images or labels otherwise.
    """
    first = models[0]
    network = _network(first)
    for model in models[1:]:
        if (_network(model), model.config.data.patch) != (network, first.config.data.patch):
            raise _refused(
                "the networks differ, and the folds of nnU-Net share one",
                f"{model.config.model.name} of {first.config.model.name}, or another patch",
                "export the folds of one network",
            )
    if first.postprocessing:
        logger.warning("nnU-Net's predictor applies no post-processing: model.json has the rules")
    dataset, order = _dataset(first)
    dataset["numTraining"] = record["members"][0].get("cases", 0)
    plans = _plans(first, network)
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", dataset)
    for fold, model in enumerate(models):
        init = {"plans": plans, "configuration": _CONFIGURATION, "fold": fold}
        augment = model.config.augment
        mirrored = augment.flip_axes if augment.flip_probability else ()
        content = {
            "network_weights": _weights(model, network, order),
            "optimizer_state": {},
            "grad_scaler_state": None,
            "logging": {},
            "_best_ema": model.facts.dice,
            "current_epoch": model.facts.step // _STEPS_PER_EPOCH,
            "init_args": {**init, "dataset_json": dataset},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": tuple(map("DHW".index, mirrored)) or None,
        }
        (folder / f"fold_{fold}").mkdir()
        save_torch(content, folder / f"fold_{fold}" / "checkpoint_final.pth")


def _network(model: TrainedModel) -> dict[str, Any]:
    """The arguments of `models.nnunet.nnunet` that build the same network.

    Raises:
        UserError: If nnU-Net has no such network, or not for this patch.
    """
    config, patch = model.config.model, model.config.data.patch
    if isinstance(config, NnUNetConfig):
        network = config.model_dump(exclude={"name", "deep_supervision"})
    elif isinstance(config, ResEncUNetConfig):
        network = {"encoder": "residual", **_halving(config.features)}
        network |= {"blocks": config.blocks, "decoder_blocks": (1,) * (len(config.features) - 1)}
    elif isinstance(config, DynUNetConfig) and not config.res_block:
        levels = len(config.filters)
        network = {"encoder": "plain", **_halving(config.filters)}
        network |= {"blocks": (2,) * levels, "decoder_blocks": (2,) * (levels - 1)}
    else:
        raise _refused(
            "nnU-Net has no such network",
            f"{config.name} with residual blocks" if config.name == "dynunet" else config.name,
            "leave --to out, or train resenc_unet, nnunet, or dynunet without residual blocks",
        )
    sides = torch.tensor(network["strides"]).prod(0).tolist()
    if any(size % side for size, side in zip(patch, sides, strict=True)):
        raise _refused(
            "nnU-Net's networks take multiples of their strides only",
            f"data.patch={list(patch)}, strides of {sides} voxels",
            "train with a patch of such multiples",
        )
    return network


def _halving(features: Sequence[int]) -> dict[str, Any]:
    levels = len(features)
    return {
        "features": tuple(features),
        "kernels": ((3, 3, 3),) * levels,
        "strides": ((1, 1, 1), *((2, 2, 2),) * (levels - 1)),
    }


def _weights(
    model: TrainedModel, network: Mapping[str, Any], order: Sequence[int]
) -> dict[str, Tensor]:
    """The state dict that nnU-Net's class has, with output channels in this order."""
    given = read_weights(model.weights)[0]
    ours = {name.removeprefix("network."): value for name, value in given.items()}
    if isinstance(model.config.model, DynUNetConfig):
        ours = _of_dynunet(ours, len(network["features"]))
    channels = len(model.facts.channel_names)
    built = nnunet(channels, len(order), **network, deep_supervision=True).network
    with torch.no_grad():
        # Coarse heads that were not trained, and biases that DynUNet does without.
        for value in built.parameters():
            value.zero_()
    heads = {name for name in ours if name.startswith("decoder.seg_layers.")}
    ours |= {name: ours[name][list(order)] for name in heads}
    lacking = built.load_state_dict(ours, strict=False)
    assert not lacking.unexpected_keys, lacking
    state: dict[str, Tensor] = built.state_dict()
    # nnU-Net's decoder names the encoder a second time; tensors are stored once.
    return state | {f"decoder.{name}": v for name, v in state.items() if name.startswith("encoder")}


def _of_dynunet(given: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The weights of MONAI's DynUNet by the names of PlainConvUNet."""
    head = f"decoder.seg_layers.{levels - 2}"
    names = (
        *_DYNUNET,
        *((rf"downsamples\.{n}\.(.*)", rf"encoder.stages.{n + 1}.0.\1") for n in range(levels - 2)),
        (r"bottleneck\.(.*)", rf"encoder.stages.{levels - 1}.0.\1"),
        (r"output_block\.conv\.conv\.(.*)", rf"{head}.\1"),
    )
    # `skip_layers` names all weights a second time, and coarser heads only serve training.
    used = {n: v for n, v in given.items() if not n.startswith(("skip_layers.", "deep_super"))}
    found = {renamed(renamed(name, names), _DYNUNET_PARTS): value for name, value in used.items()}
    return found | {
        name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1."): value
        for name, value in found.items()
        if ".convs." in name
    }


def _dataset(model: TrainedModel) -> tuple[dict[str, Any], list[int]]:
    """dataset.json, and which of our output channels comes first, second and so on."""
    classes = Classes.from_labels(model.config, model.facts.labels)
    content: dict[str, Any] = {
        "channel_names": {str(n): name for n, name in enumerate(model.facts.channel_names)},
        "file_ending": ".nii.gz",
    }
    if classes.exclusive:
        if classes.values != tuple(range(len(classes.values))):
            raise _refused(
                "nnU-Net writes the number of a label's channel as its value",
                f"the label values {', '.join(map(str, classes.values))}",
                "number the labels 0, 1, 2 and so on, and train again",
            )
        names = ("background", *classes.channel_names[1:])
        values = dict(zip(names, classes.values, strict=True))
        return content | {"labels": values}, list(range(len(names)))
    # nnU-Net paints one region over the other, so large ones come first.
    regions = list(classes.members.items())
    order = sorted(range(len(regions)), key=lambda number: -len(set(regions[number][1])))
    painted = _painted([regions[number][1] for number in order], classes)
    members = {regions[number][0]: list(regions[number][1]) for number in order}
    labels: dict[str, Any] = {"background": 0}
    labels |= {n: v if len(v) > 1 else v[0] for n, v in members.items()}
    return content | {"labels": labels, "regions_class_order": painted}, order


def _painted(regions: Sequence[Sequence[int]], classes: Classes) -> list[int]:
    """The value that nnU-Net writes for each region, the last one on top.

    Raises:
        UserError: If no values give each label back.
    """
    later = [{v for other in regions[n + 1 :] for v in other} for n in range(len(regions))]
    painted = [
        min(set(region) - covered or set(region))
        for region, covered in zip(regions, later, strict=True)
    ]
    for value in classes.values[1:]:
        inside = [number for number, region in enumerate(regions) if value in region]
        alike = [
            v for v in classes.values if inside == [n for n, r in enumerate(regions) if v in r]
        ]
        if inside and painted[inside[-1]] != min(alike):
            raise _refused(
                "nnU-Net paints regions one over the other, which loses a label",
                f"label {value} of the regions {dict(classes.members)}",
                "leave --to out",
            )
    if all(len(region) == 1 for region in regions):
        raise _refused(
            "nnU-Net takes regions of one label each for labels, and would use a softmax",
            dict(classes.members),
            "leave --to out",
        )
    return painted


def _plans(model: TrainedModel, network: Mapping[str, Any]) -> dict[str, Any]:
    patch, treated = list(model.config.data.patch), _treatment(model)
    is_plain = network["encoder"] == "plain"
    name = "PlainConvUNet" if is_plain else "ResidualEncoderUNet"
    architecture = {
        "n_stages": len(network["features"]),
        "features_per_stage": network["features"],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": network["kernels"],
        "strides": network["strides"],
        "n_conv_per_stage" if is_plain else "n_blocks_per_stage": network["blocks"],
        "n_conv_per_stage_decoder": network["decoder_blocks"],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": f"nnUNetPlans_{_CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": model.config.train.batch_size,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "architecture": {
            "network_class_name": f"{_LIBRARY}.{name}",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
        **treated.pop("configuration"),
    }
    for kind, order in _RESAMPLING.items():
        options = {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{kind}_kwargs"] = options
    return {
        "dataset_name": "exported",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": configuration["spacing"],
        "original_median_shape_after_transp": patch,
        "configurations": {_CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        **treated,
    }


def _treatment(model: TrainedModel) -> dict[str, Any]:
    """The parts of the plans that say how images are read, cropped, resampled and normalised.

    Raises:
        UserError: If the network saw other images than nnU-Net would show it.
    """
    wanted, names = model.facts.preprocessing, model.facts.channel_names
    kinds = wanted.normalisation or (Normalisation(),) * len(names)
    steps = wanted.nnunet
    if wanted.only_mm is None:
        raise _refused(
            "nnU-Net resamples all images to one voxel size, and this network saw them as they are",
            "images that keep their voxel size",
            "convert with --spacing median and train again",
        )
    for name, kind in zip(names, kinds, strict=True):
        if steps is None and kind.kind not in _STORE_SCHEMES:
            raise _refused(
                f"nnU-Net has no counterpart of the normalisation of {name}",
                f"{kind.kind}: {_NO_COUNTERPART.get(kind.kind, 'unknown')}",
                "convert with --crop --intensity zscore-whole (or ct, rgb, stored) and train again",
            )
        if steps is None and kind.kind == "zscore-whole" and not wanted.crop:
            raise _refused(
                "nnU-Net normalises by the box around what is not 0, this project by whole images",
                f"{name}: zscore-whole of images that are not cropped",
                "convert with --crop and train again",
            )
    masked = steps.masked if steps and steps.masked else (False,) * len(kinds)
    transpose = list(steps.transpose) if steps else [0, 1, 2]
    return {
        "image_reader_writer": "SimpleITKIO"
        if steps and steps.as_stored
        else "NibabelIOWithReorient",
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "foreground_intensity_properties_per_channel": {
            str(number): {
                "percentile_00_5": kind.low,
                "percentile_99_5": kind.high,
                "mean": kind.mean,
                "std": kind.std,
            }
            for number, kind in enumerate(kinds)
        },
        "configuration": {
            "spacing": list(wanted.only_mm),
            "normalization_schemes": [(_SCHEMES | _STORE_SCHEMES)[kind.kind] for kind in kinds],
            "use_mask_for_norm": list(masked),
        },
    }


def _refused(what: str, got: object, remedy: str) -> ConfigError:
    return ConfigError(what, where="--to nnunet", got=got, remedy=remedy)
