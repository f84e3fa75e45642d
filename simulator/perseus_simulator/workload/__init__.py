"""The simulated training job: one process for each rank, real pipeline messages over TCP, work on the simulated GPU."""
