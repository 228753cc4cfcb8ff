"""Options of a conversion, which `segresmamba convert` and `python -m launch convert` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FormatName = Annotated[
    str,
    typer.Option(
        "--format", help="auto, nnunet, decathlon, monai, brats2021, brats2023, bids, dicom"
    ),
]
ResampleMismatched = Annotated[
    bool, typer.Option("--resample-mismatched", help="Put images of a case onto one grid")
]
SpacingPolicy = Annotated[
    str,
    typer.Option(
        "--spacing", help="Voxel size: keep, median of all cases, or mm along D,H,W as in 3,1,1"
    ),
]
CropPolicy = Annotated[
    bool, typer.Option("--crop", help="Cut cases to the box around non-zero voxels")
]
IntensityPolicy = Annotated[
    str,
    typer.Option(
        "--intensity",
        help="How the network sees intensities: zscore (of a case's non-zero voxels), ct (clipped, "
        "by the foreground of all cases), stored; auto is ct for channels named CT, else zscore. "
        "Or one for each channel: ct,zscore",
    ),
]
DtypePolicy = Annotated[
    str,
    typer.Option(
        "--dtype", help="Of stored images: auto, float32, float16, int16 (scaled where it must be)"
    ),
]
Splits = Annotated[
    Path | None, typer.Option(help='Own folds: [{"train": [...], "val": [...]}, ...]')
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Convert all cases anew")]
