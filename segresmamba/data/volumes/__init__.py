"""One volume: its geometry, voxels, resampling and statistics."""
