"""Checkpoints that are complete or absent, and fit any number of ranks."""
