"""What is trained: dataset, split, network, classes, losses, and this process among the ranks."""
