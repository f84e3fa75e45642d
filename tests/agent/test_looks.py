"""Whether a clock is held, judged from looks at the device: what a look cannot know counts against no clock."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from agent_process import eventually
from perseus_daemonset.controller import ClockController
from perseus_daemonset.hardware import Reading
from perseus_daemonset.measuring.clocks import CHANGE_TIMEOUT_NANOSECONDS, HeldClocks
from perseus_daemonset.measuring.measurer import Measurer
from perseus_daemonset.measuring.sampler import Sampler

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND


class LateGpu:
    """A GPU that is at its new clock before the call that asked for it returns."""

    uuid = "GPU-0b0a1f6e-6c3e-4d0e-9f6b-2f4f8d1f0c11"

    def __init__(self) -> None:
        self.clock = 1410
        self.looks = 0
        self.returns = threading.Event()
        self.returns.set()

    def lock(self, megahertz: int) -> None:
        self.clock = megahertz
        self.returns.wait(30)

    def read(self) -> Reading:
        self.looks += 1
        return Reading(self.clock, 60.0, 200.0, ())

    def energy_joules(self) -> float:
        return 0.0

    def wait_for_looks(self, count: int) -> None:
        """Let the device be looked at so many times more."""
        goal = self.looks + count
        eventually(lambda: self.looks >= goal, "the device is looked at")


def test_a_look_while_a_change_is_under_way_counts_against_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perseus_daemonset.measuring.clocks.CHANGE_TIMEOUT_NANOSECONDS", 0)
    monkeypatch.setattr("perseus_daemonset.measuring.clocks.NOT_HELD_SHARE", 0.0)
    gpu, measurer = LateGpu(), Measurer("m")
    journal = SimpleNamespace(write=lambda _: None, strike=lambda _: None)
    controller = ClockController(gpu, journal, 1e6)  # type: ignore[arg-type]
    controller.grant(holder := object())
    controller.on_call = measurer.request
    lease = SimpleNamespace(
        key=SimpleNamespace(gpu=gpu.uuid), measured=True, controller=controller, measurer=measurer
    )  # fmt: skip
    sampler = Sampler(lambda: [lease])  # type: ignore[list-item]
    sampler.start()
    try:
        for clock in (1005, 1410, 1005):
            gpu.returns.clear()
            controller.wish(holder, clock)
            call = threading.Thread(target=controller.work)
            call.start()
            gpu.wait_for_looks(3)
            gpu.returns.set()
            call.join()
            gpu.wait_for_looks(3)
            assert not measurer.unconfirmed
    finally:
        sampler.stop()
    assert measurer.not_held == {}


def looks(clocks: HeldClocks, begin: int, seconds: float, megahertz: int, idle: bool = False) -> int:
    """Look every 40 ms; return when the last look was."""
    end = begin + round(seconds * SECOND)
    for now in range(begin, end, 40 * MILLISECOND):
        clocks.look(now, now, megahertz, True, idle)
    return end


def test_a_clock_that_is_missed_for_a_moment_is_held_and_one_that_is_missed_for_long_is_not() -> None:
    clocks = HeldClocks()
    clocks.request(0, 1410)
    now = looks(clocks, 0, 20, 1410)
    now = looks(clocks, now, 1, 1200)
    now = looks(clocks, now, 5, 1410)
    assert clocks.not_held == {}
    looks(clocks, now, 5, 1200)
    assert clocks.not_held == {1410: 150}


def test_the_time_that_a_change_takes_counts_against_no_clock() -> None:
    clocks = HeldClocks()
    clocks.request(0, 1410)
    looks(clocks, 0, CHANGE_TIMEOUT_NANOSECONDS / SECOND, 1200)
    assert clocks.not_held == {}


def test_a_device_that_has_nothing_to_do_may_rest_at_a_clock_of_its_own() -> None:
    clocks = HeldClocks()
    clocks.request(0, 1410)
    now = looks(clocks, 0, 2, 1410)
    looks(clocks, now, 60, 210, idle=True)
    assert clocks.not_held == {}
    assert clocks.unconfirmed, "what runs next is not at the clock before this is seen"
