"""The hand on one GPU's clock: the newest wish wins, one call at a time, nobody waits for somebody else's call."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perseus_daemonset.controller import ClockController
from perseus_daemonset.hardware import HardwareError, Reading

UUID = "GPU-0b0a1f6e-6c3e-4d0e-9f6b-2f4f8d1f0c11"


class RecordingGpu:
    """A GPU that remembers what it was told; a test makes it slow or unwilling."""

    uuid = UUID

    def __init__(self) -> None:
        self.calls: list[int | None] = []
        self.refuses: str = ""
        self.gate: threading.Event | None = None
        self.at_once = 0
        self.most_at_once = 0

    def lock(self, megahertz: int) -> None:
        self._call(megahertz)

    def reset(self) -> None:
        self._call(None)

    def _call(self, megahertz: int | None) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.gate is not None:
            self.gate.wait(10)
        self.at_once -= 1
        if self.refuses:
            raise HardwareError(self.refuses, "it refuses")
        self.calls.append(megahertz)

    @property
    def locked(self) -> int | None:
        return self.calls[-1] if self.calls else None

    def energy_joules(self) -> float:
        return 0.0

    def read(self) -> Reading:
        return Reading(0, 0.0, 0.0, ())

    def throttle_seconds(self) -> dict[str, float]:
        return {}

    def sharing(self) -> str:
        return ""


class RecordingJournal:
    """A journal that remembers; every lock must find its entry."""

    def __init__(self) -> None:
        self.entries: set[str] = set()
        self.full = False

    def write(self, uuid: str) -> None:
        if self.full:
            raise OSError("no space left on device")
        self.entries.add(uuid)

    def strike(self, uuid: str) -> None:
        self.entries.discard(uuid)


class Hand:
    """A controller with what it works on, and a holder."""

    def __init__(self, rate: float = 1e6) -> None:
        self.gpu = RecordingGpu()
        self.journal = RecordingJournal()
        self.controller = ClockController(self.gpu, self.journal, rate)  # type: ignore[arg-type]
        self.holder = object()
        self.controller.grant(self.holder)

    def want(self, megahertz: int | None) -> bool:
        """Wish for a clock; whether the device was told."""
        before = self.controller.request
        self.controller.wish(self.holder, megahertz)
        self.controller.work()
        return self.controller.request != before


def test_equal_values_are_skipped() -> None:
    hand = Hand()
    assert [hand.want(clock) for clock in (810, 810, 810, 1005, 1005, None, None)] == [
        True, False, False, True, False, True, False,
    ]  # fmt: skip
    assert hand.gpu.calls == [810, 1005, None]


def test_while_a_call_is_under_way_only_the_newest_wish_is_kept_and_nobody_waits() -> None:
    hand = Hand()
    hand.gpu.gate = threading.Event()
    first = threading.Thread(target=hand.want, args=(810,))
    first.start()
    while not hand.gpu.at_once:
        time.sleep(0.001)
    assert not any(hand.want(clock) for clock in (825, 840, 855))
    assert hand.gpu.at_once, "the call is still under way"
    hand.gpu.gate.set()
    first.join()
    assert hand.gpu.calls == [810, 855]


def test_many_threads_make_one_call_at_a_time_and_the_last_wish_holds() -> None:
    hand = Hand()

    def wish() -> None:
        for clock in range(300, 600):
            hand.want(clock)

    threads = [threading.Thread(target=wish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hand.want(1410)
    assert hand.gpu.most_at_once == 1
    assert hand.gpu.locked == 1410


def test_beyond_the_bound_the_faster_clock_stays_and_is_counted() -> None:
    hand = Hand(rate=4)
    for clock in (1000, 990, 980, 970):
        assert hand.want(clock)
    assert not hand.want(960)
    assert hand.controller.held_back == 1
    assert hand.controller.requested_megahertz == 970
    assert hand.want(1200), "a faster one is never held back: our restraint slows nobody"
    assert hand.want(None), "nor is freedom"


def test_what_an_older_holder_still_wishes_is_not_heard() -> None:
    hand = Hand()
    hand.want(810)
    newer = object()
    hand.controller.grant(newer)
    hand.controller.work()
    assert hand.gpu.locked is None
    hand.want(900)
    hand.controller.withdraw(hand.holder)
    hand.controller.wish(newer, 1005)
    hand.controller.work()
    assert hand.gpu.calls == [810, None, 1005]


def test_after_the_agents_end_nothing_is_locked_any_more() -> None:
    hand = Hand()
    hand.want(810)
    hand.controller.close()
    assert not hand.want(900) or hand.gpu.locked is None
    assert hand.gpu.locked is None
    assert hand.journal.entries == set()


def test_a_full_disk_locks_nothing() -> None:
    hand = Hand()
    hand.journal.full = True
    hand.want(810)
    assert hand.gpu.calls == []
    assert (hand.controller.problem, hand.controller.errors) == ("journal", {"journal": 1})


def test_a_reset_that_fails_is_owed_and_the_entry_stays() -> None:
    hand = Hand()
    hand.want(810)
    hand.gpu.refuses = "unknown"
    hand.want(None)
    assert hand.controller.owes_unlock
    assert hand.journal.entries == {UUID}
    hand.gpu.refuses = ""
    hand.controller.pay()
    assert hand.gpu.locked is None
    assert hand.journal.entries == set()


def test_a_wish_that_came_while_a_debt_was_paid_is_carried_out() -> None:
    hand = Hand()
    hand.want(810)
    hand.gpu.refuses = "unknown"
    hand.want(None)
    hand.gpu.refuses = ""
    hand.controller.wish(hand.holder, 1005)
    hand.controller.pay()
    assert hand.gpu.calls == [810, None, 1005]


def test_whoever_follows_the_clock_is_told_of_a_debt_that_was_paid() -> None:
    hand = Hand()
    told: list[int | None] = []
    hand.controller.on_call = lambda _, megahertz: told.append(megahertz)
    hand.want(810)
    hand.gpu.refuses = "unknown"
    hand.want(None)
    hand.gpu.refuses = ""
    hand.controller.pay()
    assert told == [810, 810, None], "a clock whose reset failed is still the one that was asked for"


def test_what_somebody_else_set_is_left_alone_for_a_while() -> None:
    hand = Hand()
    hand.want(810)
    hand.controller.yield_to_others(ours_is_gone=True)
    assert hand.gpu.calls == [810], "no reset: it would undo what the other one did"
    assert hand.journal.entries == set()
    assert not hand.want(900)
    assert (hand.controller.interferences, hand.controller.problem) == (1, "interference")


def test_where_ours_may_still_be_there_the_entry_stays_until_it_was_given_back() -> None:
    hand = Hand()
    hand.want(810)
    hand.controller.yield_to_others(ours_is_gone=False)
    assert not hand.want(900)
    assert hand.journal.entries == {UUID}
    hand.controller.withdraw(hand.holder)
    hand.controller.work()
    assert (hand.gpu.calls, hand.journal.entries) == ([810, None], set())


STEPS = st.lists(
    st.one_of(
        st.sampled_from([None, 810, 1005, 1410]),
        st.sampled_from(["fault", "cure", "full", "space", "pay", "newer", "yield"]),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([2.0, 1e6]))
def test_whatever_happens_a_locked_gpu_is_in_the_journal_and_the_end_frees_it(
    steps: list[int | str | None], rate: float
) -> None:
    hand = Hand(rate)
    for step in steps:
        match step:
            case "fault":
                hand.gpu.refuses = "unknown"
            case "cure":
                hand.gpu.refuses = ""
            case "full" | "space":
                hand.journal.full = step == "full"
            case "pay":
                hand.controller.pay()
            case "newer":
                hand.holder = object()
                hand.controller.grant(hand.holder)
                hand.controller.work()
            case "yield":
                if hand.controller.requested_megahertz is not None:
                    # As it happens: the other one's call comes last.
                    hand.gpu.calls.append(None)
                    hand.controller.yield_to_others(ours_is_gone=True)
            case _:
                hand.want(step)  # type: ignore[arg-type]
        assert hand.gpu.locked is None or UUID in hand.journal.entries, steps
    hand.gpu.refuses = ""
    hand.controller.close()
    hand.controller.work()
    hand.controller.pay()
    assert hand.gpu.locked is None
    assert hand.journal.entries == set()


@pytest.mark.parametrize("code", ["no_permission", "not_supported", "gpu_is_lost", "unknown"])
def test_an_error_is_named_counted_and_not_tried_again_at_every_boundary(code: str) -> None:
    hand = Hand()
    hand.gpu.refuses = code
    for clock in range(800, 900, 15):
        hand.want(clock)
    assert hand.controller.problem == code
    assert hand.controller.errors[code] <= 2
