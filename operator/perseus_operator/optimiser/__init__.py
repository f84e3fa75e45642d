"""The optimisation pod's program: profile in, frontier out, and nothing else."""
