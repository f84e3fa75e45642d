"""What holds for all tests: hypothesis judges what comes out, never how long it took; and the lanes of `make test`."""

from __future__ import annotations

from hypothesis import settings

from tests.lanes import *  # noqa: F403

settings.register_profile("house", deadline=None)
settings.load_profile("house")
