"""The orders of the schedules that have a name: one function each, in one file for each idea.

Pure Python, so that what only needs an order (and the operator, which imports the planner's door) brings no numpy.
Every order is made in time linear in its length.
"""

from __future__ import annotations

from perseus_planner.orders.interleaved import interleaved
from perseus_planner.orders.whole_backward import early_recompute, gpipe, one_forward_one_backward
from perseus_planner.orders.zero_bubble import zb_h1, zbv

__all__ = ["early_recompute", "gpipe", "interleaved", "one_forward_one_backward", "zb_h1", "zbv"]
