"""Measuring time and energy of a rank's instructions while a sweep runs: pure, but for the thread that reads the GPU.

The counter of a GPU's energy refreshes about every 100 ms, an instruction takes less: so no instruction's energy can be
read. What can be read is the counter at its refreshes; what is known between two of them is how long each instruction
ran and how long the GPU waited. Many such pairs make a linear system whose solution is the power of each.
"""
