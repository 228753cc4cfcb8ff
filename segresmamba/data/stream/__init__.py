"""Crops for training: where they lie, batches of them, and augmentation on the device."""
