"""A label map in the geometry of its image, and the files that it is written to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from segresmamba.data.volumes import geometry
from segresmamba.errors import DataError
from segresmamba.inference.ome_zarr import require_replaceable, write_ome_zarr
from segresmamba.storage.atomic import atomic_path

ENDINGS = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "zarr": ".zarr"}
"""The formats of label maps, and how their files end."""
_ITK_ENDINGS = (".nrrd", ".mha")
_ITK_SOURCES = (*_ITK_ENDINGS, ".nhdr", ".mhd")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class LabelMap:
    """The labels of one case."""

    image: Any
    """A nibabel image with the header of the case's first image, and integers as its voxels."""
    labels: dict[str, int]
    """Name and value of each label."""
    source: Path | None = None
    """The file whose geometry it has."""
    is_array: bool = False
    """Whether the case was given as an array (C, D, H, W)."""
    given_probabilities: npt.NDArray[np.float16] | None = None

    @property
    def array(self) -> npt.NDArray[np.integer[Any]]:
        """Label values: (X, Y, Z) as the file has them, or (D, H, W) if an array was given."""
        array_XYZ: npt.NDArray[np.integer[Any]] = np.asarray(self.image.dataobj)
        return array_XYZ.transpose() if self.is_array else array_XYZ

    @property
    def affine(self) -> geometry.Affine:
        """4x4: voxel (x, y, z) to RAS mm."""
        return geometry.in_mm(self.image.affine, self.image.header)

    @property
    def probabilities(self) -> npt.NDArray[np.float16]:
        """Probabilities (K, ...) on the axes of `array`: of the labels, or of each region.

        Raises:
            DataError: If none were asked for.
        """
        if self.given_probabilities is None:
            raise DataError(
                "no probabilities were kept",
                where="segment",
                got="probabilities=False",
                remedy="give segment(..., probabilities=True)",
            )
        return self.given_probabilities

    def save(self, path: str | Path) -> Path:
        """Write the label map, whole or not at all.

        Args:
            path: A name that ends in .nii, .nii.gz, .nrrd, .mha or .zarr.

        Raises:
            DataError: If the ending is another one, the file cannot be written, or `path` is the
                image itself or a folder of something else.
        """
        path = Path(path)
        write = writer_for(path, [] if self.source is None else [self.source])
        try:
            write(self, path)
        except OSError as error:
            raise cannot_write(path, error) from error
        return path


def writer_for(path: Path, images: Sequence[Path] = ()) -> Callable[[LabelMap, Path], None]:
    """What writes label maps to a file of this name.

    Args:
        path: The file. A label map of that name is replaced.
        images: The files that are segmented.

    Raises:
        DataError: If its ending stands for no known format, its folder is not there, or it would
            replace an image, or a folder that is no label map.
    """
    name = path.name.lower()
    if not path.parent.is_dir():
        raise DataError(
            "the folder of the label file does not exist",
            where=path,
            got=path.parent,
            remedy=f"mkdir -p {path.parent}",
        )
    if any(image.exists() and path.exists() and path.samefile(image) for image in images):
        raise DataError(
            "the label map would replace the image",
            where=path,
            got="the file of an image that is segmented",
            remedy="give the label file a name of its own",
        )
    if path.is_dir():
        require_replaceable(path)
    if name.endswith((".nii", ".nii.gz")):
        return _write_nifti
    if name.endswith(_ITK_ENDINGS):
        return _write_itk
    if name.endswith(".zarr"):
        return _write_zarr
    raise DataError(
        "labels are not written to files of this kind: NIfTI, NRRD, MetaImage and OME-Zarr are",
        where=path,
        got=path.name,
        remedy=f"write {path.with_suffix('')}.nii.gz, or another of {', '.join(ENDINGS.values())}",
    )


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error to raise when the result cannot be written to disk."""
    return DataError(
        "the result cannot be written",
        where=error.filename or path,
        got=error.strerror,
        remedy="free space, or choose a folder that you can write to",
    )


def _write_nifti(label: LabelMap, path: Path) -> None:
    with atomic_path(path) as temporary:
        label.image.to_filename(temporary)


def _write_itk(label: LabelMap, path: Path) -> None:
    import SimpleITK as sitk  # noqa: N813 - most predictions do without it

    array_XYZ = np.asarray(label.image.dataobj)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array_XYZ.T))
    if label.source is not None and label.source.name.lower().endswith(_ITK_SOURCES):
        reader = sitk.ImageFileReader()  # to the last digit: a nibabel header is float32
        reader.SetFileName(str(label.source))
        reader.ReadImageInformation()
        image.SetOrigin(reader.GetOrigin()[:3])
        image.SetSpacing(reader.GetSpacing()[:3])
        axes = np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3]
        image.SetDirection(axes.ravel().tolist())
    else:
        sizes = voxel_sizes(label.affine)
        image.SetOrigin((_RAS_TO_LPS @ label.affine[:3, 3]).tolist())
        image.SetSpacing(sizes.tolist())
        image.SetDirection((_RAS_TO_LPS @ label.affine[:3, :3] / sizes).ravel().tolist())
    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:  # ITK has no other error for a full disk
            raise OSError(None, str(error).splitlines()[-1], str(path)) from error


def _write_zarr(label: LabelMap, path: Path) -> None:
    array_XYZ = np.asarray(label.image.dataobj)
    shape_DHW, affine = geometry.ras_grid(array_XYZ.shape, label.affine)
    label_DHW = np.empty(shape_DHW, array_XYZ.dtype)
    geometry.in_file_axes(label_DHW, label.affine)[...] = array_XYZ
    write_ome_zarr(path, label_DHW, affine, labels=label.labels)
