"""The operator under fault: a control plane of its own, a proxy that counts, kills and refuses, and scenarios.

Tests run reduced forms of what the benchmarks measure in full, by the same code. It may use every part of the product;
no part of the product knows it. Everything stays on loopback, private to one run, so that runs never meet.
"""
