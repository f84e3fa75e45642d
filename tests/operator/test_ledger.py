"""The ledger's arithmetic: every joule once, whatever starts anew, and what was saved told apart by its cause."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.errors import DocumentError
from perseus_operator.accounts import Accounts
from perseus_operator.counters import JobReadings, Quantity, Reading, SeriesKey, question, readings
from perseus_operator.ledger import FORGET_AFTER_SECONDS, Ledger, Situation
from perseus_operator.report import final_report, report_json, report_sentence, savings_status

JOB = ("research", "gpt")


def at(pod: str = "gpt-0", **values: float | tuple[float, float]) -> JobReadings:
    """Readings of one pod: by quantity a value, or the last and the greatest."""
    found = JobReadings()
    for name, value in values.items():
        last, greatest = value if isinstance(value, tuple) else (value, value)
        found.series[SeriesKey(pod, f"GPU-{pod}", Quantity(name))] = Reading(last, greatest)
    return found


def both(*found: JobReadings) -> JobReadings:
    return JobReadings({key: reading for each in found for key, reading in each.series.items()})


def ledger(*found: JobReadings, situation: Situation = Situation.PLANNED) -> Ledger:
    made = Ledger("uid")
    for index, each in enumerate(found):
        made.take(each, 100.0 + index, situation)
    return made


def test_a_counter_counts_from_zero_and_then_by_its_differences() -> None:
    assert ledger(at(energy=100), at(energy=250), at(energy=250)).totals.energy_joules == 250


def test_a_counter_that_began_anew_counts_from_zero_again() -> None:
    assert ledger(at(energy=100), at(energy=30)).totals.energy_joules == 130


def test_what_was_counted_between_the_last_look_and_a_new_begin_is_not_lost() -> None:
    assert ledger(at(energy=100), at(energy=(30, 140))).totals.energy_joules == 170


def test_a_window_that_reaches_back_behind_the_last_look_counts_nothing_twice() -> None:
    books = ledger(at(energy=(10, 100)))
    assert books.totals.energy_joules == 110
    books.take(at(energy=(20, 100)), 200, Situation.PLANNED, since_unix_seconds=99)
    assert books.totals.energy_joules == 120
    books.take(at(energy=(5, 60)), 300, Situation.PLANNED, since_unix_seconds=200)
    assert books.totals.energy_joules == 120 + 40 + 5


def test_a_pod_that_is_gone_keeps_its_share_and_its_successor_adds_to_it() -> None:
    assert ledger(at("a", energy=100), both(at("a", energy=120), at("b", energy=5)), at("b", energy=45)).totals == (
        ledger(at("a", energy=120), at("b", energy=45)).totals
    )


def test_a_gap_in_the_scrapes_loses_nothing_and_counts_nothing_twice() -> None:
    assert ledger(at(energy=100), JobReadings(), JobReadings(), at(energy=400)).totals.energy_joules == 400


def test_pods_of_an_earlier_job_of_the_same_name_are_not_paid_for() -> None:
    books = Ledger("uid")
    books.take(both(at("old", energy=999), at("new", energy=5)), 1, Situation.PLANNED, foreign=frozenset({"old"}))
    assert books.totals.energy_joules == 5


def test_a_ledger_that_was_written_down_continues_as_if_nothing_had_happened() -> None:
    books = ledger(at(energy=100, measured=120, iterations=3))
    again = Ledger.decode(books.encode())
    assert again == books
    again.take(at(energy=150, measured=180, iterations=4), 101, Situation.PLANNED)
    assert (again.totals.energy_joules, again.totals.iterations) == (150, 4)


def test_a_damaged_ledger_is_refused() -> None:
    data = bytearray(ledger(at(energy=1)).encode())
    data[len(data) // 2] ^= 1
    with pytest.raises(DocumentError):
        Ledger.decode(bytes(data))


def test_pods_unseen_for_long_are_forgotten_so_that_the_ledger_stays_small() -> None:
    books = ledger(at("a", energy=100))
    books.take(at("b", energy=1), 101 + FORGET_AFTER_SECONDS, Situation.PLANNED)
    assert books.pods == {"b"}
    assert books.totals.energy_joules == 101


def test_a_ledger_of_a_thousand_gpus_fits_into_a_config_map() -> None:
    rng = random.Random(1)
    values = {quantity.value: rng.uniform(1e9, 1e10) for quantity in Quantity}
    pods = [at(f"gpt-{rank}-{rng.randrange(1 << 30):08x}", **values) for rank in range(1024)]
    assert len(ledger(both(*pods)).encode()) < 300_000


def test_savings_without_a_straggler_are_intrinsic() -> None:
    totals = ledger(at(energy=80, measured=100, iterations=10)).totals
    assert (totals.intrinsic_joules, totals.straggler_joules) == (20, 0)


def test_behind_a_straggler_only_what_exceeds_the_usual_is_the_stragglers() -> None:
    books = ledger(at(energy=80, measured=100, iterations=10))
    books.take(at(energy=150, measured=210, iterations=20), 102, Situation.STRAGGLING)
    assert (books.totals.intrinsic_joules, books.totals.straggler_joules) == (20 + 20, 20)
    books.take(at(energy=230, measured=310, iterations=30), 103, Situation.PLANNED)
    assert (books.totals.intrinsic_joules, books.totals.straggler_joules) == (60, 20)


def test_the_parts_always_add_up_to_the_whole() -> None:
    books = ledger(at(energy=80, measured=100, iterations=10))
    books.take(at(energy=190, measured=200, iterations=20), 102, Situation.STRAGGLING)
    assert books.totals.intrinsic_joules == 20 - 10
    assert books.totals.straggler_joules == 0


def test_the_measured_baseline_does_not_thin_the_usual_savings() -> None:
    books = Ledger("uid")
    books.take(at(energy=100, measured=100, iterations=10), 1, Situation.UNPLANNED)
    books.take(at(energy=180, measured=200, iterations=20), 2, Situation.PLANNED)
    books.take(at(energy=250, measured=300, iterations=30), 3, Situation.STRAGGLING)
    assert (books.totals.intrinsic_joules, books.totals.straggler_joules) == (40, 10)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 500), st.booleans(), st.booleans()), min_size=1, max_size=40),
)
def test_whatever_starts_anew_and_whenever_the_operator_reads_the_sum_is_what_was_used(
    steps: list[tuple[int, float, bool, bool]],
) -> None:
    """Each step: a pod begins anew or not, and uses energy; then the operator reads (and dies and is back) or not."""
    true = 0.0
    now = dict.fromkeys(range(3), 0.0)
    window = dict(now)  # greatest since two looks ago: windows reach back further than they need to
    recent = dict(now)  # greatest since the last look
    resets: set[int] = set()
    earlier: set[int] = set()  # between the two looks before
    books = Ledger("uid")
    looks = [-20.0, -10.0]

    def look(moment: float) -> Ledger:
        found = both(*(at(f"gpt-{each}", energy=(now[each], max(window[each], recent[each]))) for each in now))
        books.take(found, moment, Situation.PLANNED, since_unix_seconds=looks[-2] + 1)
        looks.append(moment)
        return Ledger.decode(books.encode())

    for index, (pod, joules, anew, reads) in enumerate(steps):
        if anew and pod not in resets | earlier:
            # One new beginning in two looks, of a counter that does not overtake itself meanwhile, can be told.
            resets.add(pod)
            now[pod] = 0.0
        if pod in resets:
            joules = min(joules, max(0.0, recent[pod] - now[pod]) / 2)
        now[pod] += joules
        true += joules
        recent[pod] = max(recent[pod], now[pod])
        if reads:
            books = look(10.0 * index)
            window, recent = recent, dict(now)
            resets, earlier = set(), resets
    books = look(1000.0)
    assert books.totals.energy_joules == pytest.approx(true, abs=1e-6)


def test_answers_that_are_none_of_the_questions_are_left_out() -> None:
    labels = {"namespace": "research", "job": "gpt", "pod": "gpt-0", "gpu": "GPU-0", "reading": "last"}
    found = readings(
        [
            ({**labels, "quantity": "energy"}, 5.0),
            ({**labels, "quantity": "energy", "reading": "greatest"}, 7.0),
            ({**labels, "quantity": "nonsense"}, 5.0),
            ({**labels, "quantity": "measured"}, -1.0),
        ]
    )
    key = SeriesKey("gpt-0", "GPU-0", Quantity.ENERGY)
    assert found[JOB].series == {key: Reading(5.0, 7.0)}


def test_nothing_of_a_job_enters_the_question() -> None:
    assert question(30.0) == question(30.0)
    assert "[32000ms]" in question(30.0)


async def test_a_job_of_the_same_name_gets_books_of_its_own() -> None:
    asked: list[tuple[str, str]] = []
    accounts = Accounts(lambda _key: Situation.PLANNED, asked.append, enabled=True)
    accounts.open(JOB, ledger(at("old", energy=100)))
    assert accounts.find(JOB, "another") is None
    accounts.open(JOB, Ledger("another"))

    class Source:
        async def counters(self, window_seconds: float) -> dict[tuple[str, str], JobReadings]:
            return {JOB: both(at("old", energy=100), at("new", energy=7))}

    await accounts.read(Source())
    found = accounts.find(JOB, "another")
    assert found is not None
    assert found.totals.energy_joules == 7
    await accounts.read(Source())
    assert asked == [JOB], "to be written down once a minute, and only if something has changed"


def test_a_report_says_in_integers_what_the_books_say() -> None:
    books = ledger(at(energy=84.4, measured=90, predicted=10, iterations=9, seconds=22, baseline_seconds=20))
    report = final_report(books.totals, "Succeeded", "2026-01-01T00:00:00Z")
    assert report == {
        "outcome": "Succeeded", "ended": "2026-01-01T00:00:00Z", "iterations": 9, "energyJoules": 84,
        "baselineJoules": 100, "savedJoules": 16, "savedIntrinsicJoules": 16, "savedStragglerJoules": 0,
        "savingsPermille": 156, "source": "Mixed", "slowdownPermille": 100, "planSlowdownPermille": 100,
    }  # fmt: skip
    assert "15.6 % less than unlocked, +10.0 % time (baseline: mixed)" in report_sentence(report)
    assert '"complete": true' in report_json(books.totals, report)


def test_without_a_baseline_there_is_no_report_and_no_savings() -> None:
    totals = ledger(at(energy=84)).totals
    assert savings_status(totals) is None
    assert final_report(totals, "Failed", "2026-01-01T00:00:00Z") is None
