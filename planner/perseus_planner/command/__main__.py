"""``python -m perseus_planner.command``: the same as ``perseus``."""

from perseus_planner.command import main

main()
