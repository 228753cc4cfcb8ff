from __future__ import annotations

import itertools
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import OriginalGrid

CODES = [
    "".join(sides)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for sides in itertools.product(*axes)
]


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, int, int], np.ndarray]:
    """Any of the 48 orientations, tilted, with spacings and an origin."""
    code = draw(st.sampled_from(CODES))
    shape = draw(st.tuples(*[st.integers(2, 7)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 5)] * 3))
    tilt = draw(st.tuples(*[st.floats(-20, 20)] * 3))
    origin = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(code), shape)
    affine = np.eye(4)
    affine[:3, :3] = (
        Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ turn[:3, :3] @ np.diag(spacing)
    )
    affine[:3, 3] = origin
    return shape, affine.astype(np.float32).astype(np.float64)


def to_ras(data_XYZ: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shape_DHW, ras_affine = geometry.ras_grid(data_XYZ.shape, affine)
    turned_DHW = np.empty(shape_DHW, data_XYZ.dtype)
    geometry.in_file_axes(turned_DHW, affine)[...] = data_XYZ
    return turned_DHW, ras_affine


PLACED = ("qform_code", "sform_code", "pixdim", "quatern_b", "quatern_c", "quatern_d",
          "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "dim", "datatype",
          "xyzt_units")  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    grid=grids(),
    seed=st.integers(0, 1000),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
)
def test_a_label_file_comes_back_as_it_was(
    grid: tuple[tuple[int, int, int], np.ndarray],
    seed: int,
    kind: Any,
    codes: tuple[int, int],
    dtype: Any,
) -> None:
    """Affine, codes, shape, dtype and voxels, from file to file."""
    shape, affine = grid
    label = np.random.default_rng(seed).integers(0, 4, shape).astype(dtype)
    made = kind(label, affine)
    made.set_qform(affine, code=codes[0])
    made.set_sform(affine, code=codes[1])
    filed = kind.from_bytes(made.to_bytes())
    original = OriginalGrid.from_text(OriginalGrid.from_header(filed.header, dtype).text)
    label_DHW, ras_affine = to_ras(label.astype(np.uint8), filed.affine)
    restored = kind.from_bytes(original.restore(label_DHW).to_bytes())
    assert nib.aff2axcodes(ras_affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(restored.dataobj), label)
    np.testing.assert_array_equal(restored.affine, filed.affine)
    assert restored.get_data_dtype() == dtype
    for key in PLACED:
        np.testing.assert_array_equal(restored.header[key], filed.header[key], key)


@settings(max_examples=50, deadline=None)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_reorientation_leaves_every_voxel_where_it_is(
    grid: tuple[tuple[int, int, int], np.ndarray], seed: int
) -> None:
    shape, affine = grid
    marked = tuple(np.random.default_rng(seed).integers(0, shape))
    data = np.zeros(shape, np.uint8)
    data[marked] = 1
    data_DHW, ras_affine = to_ras(data, affine)
    found_xyz = np.argwhere(data_DHW)[0][::-1]
    np.testing.assert_allclose(
        apply_affine(ras_affine, found_xyz), apply_affine(affine, marked), atol=1e-4
    )
    spacing = geometry.spacing_mm(ras_affine)
    np.testing.assert_allclose(sorted(spacing), sorted(nib.affines.voxel_sizes(affine)), rtol=1e-6)


def test_spacing_is_in_the_order_of_the_stored_axes() -> None:
    assert geometry.spacing_mm(np.diag([1.0, 2.0, 3.0, 1.0])) == (3, 2, 1)


def test_a_big_endian_header_is_kept() -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_shape((2, 3, 4))
    header.set_sform(np.diag([1, 2, 3, 1]), code=1)
    original = OriginalGrid.from_header(header, np.uint8)
    assert original.shape_XYZ == (2, 3, 4)
    restored = original.restore(np.ones((4, 3, 2), np.uint8))
    assert restored.shape == (2, 3, 4)
    assert np.asarray(restored.dataobj).all()


@pytest.mark.parametrize(
    ("affine", "usable"),
    [
        (np.eye(4), True),
        (np.diag([1e-4, 1e-4, 1e-4, 1]), True),
        (np.diag([1.0, 1.0, 0.0, 1.0]), False),
        (np.full((4, 4), np.nan), False),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), False),
    ],
)
def test_an_affine_must_place_every_voxel(affine: np.ndarray, usable: bool) -> None:
    assert geometry.is_usable(affine) is usable


def test_the_distance_of_grids_is_measured_in_voxels() -> None:
    first = np.diag([2.0, 2.0, 2.0, 1.0])
    moved = first.copy()
    moved[0, 3] = 1
    assert geometry.corner_distance_voxels((10, 10, 10), first, first) == 0
    assert geometry.corner_distance_voxels((10, 10, 10), first, moved) == pytest.approx(0.5)
