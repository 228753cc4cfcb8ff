"""The Zarr store: what lies in it, where it lies, reading and writing one case."""
