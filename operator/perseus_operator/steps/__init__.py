"""The steps of a visit in the order of need: frontier, workload, plan, status. Each knows no other."""
