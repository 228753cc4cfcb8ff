"""What is trained: dataset, split, network, classes, losses, precision, and this process's place."""
