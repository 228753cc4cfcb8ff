"""Submit training, sweeps and conversions to this machine or to Slurm through Submitit."""
