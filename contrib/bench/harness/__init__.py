"""What the measurements share. Python's standard library alone: they run on a machine that has nothing else."""
