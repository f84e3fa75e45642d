"""The trainer library: tells the node's agent which pipeline instruction runs, and does nothing else.

    import perseus_trainer

    session = perseus_trainer.connect()
    with session.iteration():
        with session.instruction("forward", microbatch=0):
            ...

It needs nothing beyond Python's standard library, holds no privilege, and never waits for or raises because of the
agent: training goes on whatever happens to it. Configured by ``PERSEUS_*`` variables, which the operator and the
chart set.
"""

from perseus_trainer.environment import Rank
from perseus_trainer.session import Session, connect

__all__ = ["Rank", "Session", "connect"]
