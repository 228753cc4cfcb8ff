"""Slurm: its queue, its scripts, its nodes, and the job that this process is in."""
