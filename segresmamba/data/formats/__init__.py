"""Readers of source datasets: nnU-Net, Decathlon, datalists, BraTS, BIDS and DICOM."""
