"""The node agent: locks GPU clocks as the plan says, for pods that own their GPUs, and never leaves a lock behind."""
