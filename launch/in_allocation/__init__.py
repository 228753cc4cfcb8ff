"""What runs inside a Slurm job before its ranks start and after they have failed."""
