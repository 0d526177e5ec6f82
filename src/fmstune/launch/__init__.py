"""A frozen job becomes processes: here, on several machines, in Slurm."""
