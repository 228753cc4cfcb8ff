"""The Zarr store: its layout, its location, and the reading and writing of one case."""
