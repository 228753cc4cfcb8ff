"""How strong nnU-Net's default augmentation is: the reference of a test of `augment=nnunet`.

    pip install nnunetv2==2.8.1 batchgeneratorsv2==0.3.6     # in an environment of its own
    python benchmarks/augmentation_parity.py                 # a minute; writes RESULTS

Each transform of nnU-Net's trainer is made 10,000 times on a phantom, and what it does is measured
by a few numbers: the angle of a rotation, the size of a voxel, the deviation of noise. RESULTS
holds the distribution of each number and the probability of each transform.
tests/data/stream/test_nnunet_augmentation.py measures this project's transforms in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "augmentation_nnunet.json"
_SIDE = 17
_REPEATS = 10_000
_THRESHOLDS = 40

Values = dict[str, list[float]]


def phantom(transform: str) -> Tensor:
    """What a transform is measured on: (3, D, H, W)."""
    if transform == "spatial":  # each channel holds a coordinate
        return torch.stack(torch.meshgrid(*[torch.arange(_SIDE) - _SIDE // 2.0] * 3, indexing="ij"))
    torch.manual_seed(0)
    noise_CDHW = torch.randn(3, _SIDE, _SIDE, _SIDE)
    # Skewed, as images are, so that a curve and its inverse differ.
    return noise_CDHW if transform in ("blur", "low_resolution") else (noise_CDHW * 0.5).exp()


def measure(transform: str, before_CDHW: Tensor, results: Iterable[Tensor]) -> Values:
    """The numbers that say what a transform did, by name; a list over samples and channels."""
    found: Values = {}
    for after_CDHW in results:
        if transform == "spatial":
            _add(found, _spatial(after_CDHW))
            continue
        changed = [not torch.equal(*pair) for pair in zip(before_CDHW, after_CDHW, strict=True)]
        _add(found, {"channels": np.mean(changed)})
        for channel in np.flatnonzero(changed):
            _add(found, _intensity(transform, before_CDHW[channel], after_CDHW[channel]))
    return found


def _add(found: Values, numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        found.setdefault(name, []).append(float(value))


def _spatial(after_CDHW: Tensor) -> dict[str, float]:
    """The affine map at the centre, where coordinates are interpolated without error."""
    middle, columns = _SIDE // 2, []
    for axis in range(3):
        ahead, behind = [middle] * 3, [middle] * 3
        ahead[axis], behind[axis] = middle + 1, middle - 1
        columns.append((after_CDHW[:, *ahead] - after_CDHW[:, *behind]) / 2)
    matrix_33 = torch.stack(columns, 1).double().numpy()
    size_3 = np.linalg.norm(matrix_33, axis=0)
    angles_3 = Rotation.from_matrix(matrix_33 / size_3).as_euler("xyz", degrees=True)
    return {
        **{f"voxel {axis}": size for axis, size in zip("DHW", size_3, strict=True)},
        **{f"angle {axis}": angle for axis, angle in zip("DHW", angles_3, strict=True)},
    }


def _intensity(transform: str, before_DHW: Tensor, after_DHW: Tensor) -> dict[str, Any]:
    deviation = after_DHW.std() / before_DHW.std()
    if transform == "noise":
        return {"deviation": (after_DHW - before_DHW).std()}
    if transform in ("blur", "low_resolution"):
        return {f"correlation {axis}": _correlation(after_DHW, n) for n, axis in enumerate("DHW")}
    if transform == "contrast":
        return {"deviation": deviation, "range": after_DHW.amax() - after_DHW.amin()}
    if transform == "brightness":
        return {"factor": (after_DHW / before_DHW).mean()}
    centred = (after_DHW - after_DHW.mean()) / after_DHW.std()
    mean = after_DHW.mean() / before_DHW.mean()
    return {"skewness": (centred**3).mean(), "deviation": deviation, "mean": mean}


def _correlation(x_DHW: Tensor, axis: int) -> Tensor:
    """The correlation of neighbours along an axis."""
    ahead, behind = x_DHW.narrow(axis, 1, _SIDE - 1), x_DHW.narrow(axis, 0, _SIDE - 1)
    return torch.corrcoef(torch.stack([ahead.flatten(), behind.flatten()]))[0, 1]


def distribution(values: npt.ArrayLike) -> dict[str, list[float]]:
    """Thresholds between the least and the greatest value, and the share of values below each."""
    ordered = np.sort(np.asarray(values))
    at = np.linspace(ordered[0], ordered[-1], _THRESHOLDS + 2)[1:-1]
    return {"at": at.tolist(), "below": below(ordered, at).tolist()}


def below(values: npt.ArrayLike, at: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The share of values below each threshold."""
    return np.searchsorted(np.sort(np.asarray(values)), at) / np.size(values)


def _nnunet(*, thick_slices: bool) -> dict[str, Any]:
    """Distributions and probabilities of the transforms that nnU-Net's trainer makes."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    degrees = 180 if thick_slices else 30
    between = (-np.deg2rad(degrees), np.deg2rad(degrees))
    patch = (_SIDE, _SIDE, _SIDE)
    made = nnUNetTrainer.get_training_transforms(patch, between, None, (0, 1, 2), thick_slices)
    transforms = list(made.transforms)
    names = ["noise", "blur", "brightness", "contrast", "low_resolution", "inverse_gamma", "gamma"]
    first = 3 if thick_slices else 1  # a thick volume is folded to two dimensions and back
    spatial = transforms[:first]
    probabilities = {
        "rotation": spatial[-2 if thick_slices else 0].p_rotation,
        "scaling": spatial[-2 if thick_slices else 0].p_scaling,
    }
    spatial[-2 if thick_slices else 0].p_rotation = 1
    spatial[-2 if thick_slices else 0].p_scaling = 1
    chains = {"spatial": spatial}
    for name, random in zip(names, transforms[first:], strict=False):
        probabilities[name] = random.apply_probability
        chains[name] = [random.transform]
    return {
        "probabilities": probabilities,
        "distributions": {name: _distributions(name, chain) for name, chain in chains.items()},
    }


def _distributions(name: str, chain: list[Any]) -> dict[str, Any]:
    np.random.seed(0)  # nnU-Net draws from the global states
    torch.manual_seed(0)
    before_CDHW = phantom(name)

    def results() -> Iterable[Tensor]:
        for _ in range(_REPEATS):
            sample = {"image": before_CDHW.clone()}
            for transform in chain:
                sample = transform(**sample)
            yield sample["image"]

    return {
        key: distribution(values) for key, values in measure(name, before_CDHW, results()).items()
    }


def main() -> None:
    """Write the reference."""
    torch.set_num_threads(1)
    content = {
        "nnunet": _nnunet(thick_slices=False),
        "nnunet_thick_slices": _nnunet(thick_slices=True),
    }
    RESULTS.write_text(json.dumps(content) + "\n")
    print(json.dumps({name: one["probabilities"] for name, one in content.items()}, indent=1))


if __name__ == "__main__":
    main()
