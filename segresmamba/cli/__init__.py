"""Command line: arguments and wiring, nothing else."""
