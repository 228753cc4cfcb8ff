"""Crops for training: their places, batches of them, and augmentation on the device."""
