"""The trainer library: tells the node's agent which pipeline instruction runs, and does nothing else.

    import perseus_trainer as perseus

    with perseus.iteration():
        with perseus.instruction("forward", microbatch=0):
            ...

It needs nothing beyond Python's standard library, holds no privilege, and never waits for or raises because of the
agent: training goes on whatever happens to it. Configured by ``PERSEUS_*`` variables, which the operator and the
chart set. For training frameworks there are `perseus_trainer.adapters`, one line each.
"""

from perseus_trainer.environment import Rank
from perseus_trainer.recording import Recorded, RecordedOrder, order_document
from perseus_trainer.session import Session, connect, default_session, instruction, iteration

__all__ = [
    "Rank",
    "Recorded",
    "RecordedOrder",
    "Session",
    "connect",
    "default_session",
    "instruction",
    "iteration",
    "order_document",
]
