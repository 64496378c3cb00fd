"""The expiry schedule, against a plain dictionary that holds everything."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trioresume.protocol.clock import Schedule


def loaded(window: int = 8) -> Schedule:
    """A schedule of an empty catalog."""
    schedule = Schedule(window)
    schedule.begin_load()
    schedule.load([], complete=True)
    return schedule


def test_it_asks_before_it_trusts_itself() -> None:
    """Nothing is known before the first load."""
    schedule = Schedule()
    asked = [schedule.needs_load]
    schedule.add("a", 1.0)
    assert schedule.next_deadline() is None
    schedule.begin_load()
    asked.append(schedule.needs_load)
    assert asked == [True, False]
    schedule.load([(1.0, "a")], complete=True)
    assert schedule.next_deadline() == 1.0


def test_what_is_due_comes_soonest_first_and_once() -> None:
    """The deadline's own instant counts."""
    schedule = loaded()
    for token, deadline in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 3.5)):
        schedule.add(token, deadline)
    assert schedule.due(3.0) == ["a", "b", "c"]
    assert schedule.due(3.0) == []
    assert schedule.next_deadline() == 3.5


def test_a_new_deadline_replaces_the_old_one() -> None:
    """Later or sooner."""
    schedule = loaded()
    schedule.add("a", 1.0)
    schedule.add("a", 5.0)
    assert schedule.due(4.0) == []
    schedule.add("a", 2.0)
    schedule.add("a", 2.0)
    assert schedule.due(9.0) == ["a"]
    assert len(schedule) == 0


def test_what_is_discarded_is_never_due() -> None:
    """Also when it was never there."""
    schedule = loaded()
    schedule.add("a", 1.0)
    schedule.discard("a")
    schedule.discard("b")
    assert schedule.next_deadline() is None
    assert schedule.due(9.0) == []
    assert not schedule.needs_load


def test_what_is_added_during_a_load_is_kept_and_outweighs_the_answer() -> None:
    """The answer is as old as the question."""
    schedule = Schedule()
    schedule.begin_load()
    schedule.add("new", 4.0)
    schedule.add("moved", 1.0)
    schedule.load([(2.0, "old"), (3.0, "moved"), (9.0, "last")], complete=False)
    assert schedule.due(10.0) == ["moved", "old", "new", "last"]
    assert schedule.needs_load


def test_beyond_the_horizon_nothing_is_held() -> None:
    """Memory holds the window; the catalog's index holds the rest."""
    schedule = Schedule(4)
    schedule.begin_load()
    schedule.load([(float(n), str(n)) for n in range(4)], complete=False)
    schedule.add("later", 99.0)
    schedule.add("0", 99.0)
    assert schedule.due(1000.0) == ["1", "2", "3"]
    assert schedule.needs_load


def test_a_load_that_failed_is_asked_for_again() -> None:
    """What was held without its catalog is not trusted."""
    schedule = loaded()
    schedule.begin_load()
    schedule.add("a", 1.0)
    schedule.abandon_load()
    assert schedule.needs_load
    assert schedule.next_deadline() is None


def test_an_answer_that_says_nothing_is_the_callers_error() -> None:
    """It could be asked for again for ever."""
    schedule = Schedule()
    schedule.begin_load()
    with pytest.raises(ValueError):
        schedule.load([], complete=False)
    with pytest.raises(ValueError):
        Schedule(1)


def test_a_million_deadlines_fit_into_a_window() -> None:
    """DESIGN: a bounded part of them in memory, and the soonest are right."""
    schedule = Schedule(1024)
    schedule.begin_load()
    schedule.load([], complete=True)
    count = 1_000_000
    for number in range(count):
        # Scattered over the range, each value once: 7919 is prime to the count.
        schedule.add(str(number), float(number * 7919 % count))
    assert len(schedule) <= 1024
    assert schedule.pending <= 3 * 1024 + 64
    due = schedule.due(99.0)
    assert [float(int(token) * 7919 % count) for token in due] == [
        float(deadline) for deadline in range(100)
    ]


def test_moving_one_deadline_for_ever_does_not_grow_the_heap() -> None:
    """An upload's expiry is renewed by every append."""
    schedule = loaded()
    for number in range(100_000):
        schedule.add("a", 1e9 + number)
    assert schedule.pending <= 128


tokens = st.sampled_from([f"t{number}" for number in range(12)])
deadlines = st.integers(0, 30).map(float)


class ScheduleMachine(RuleBasedStateMachine):
    """A catalog that is told first, then the schedule, as the server does."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog: dict[str, float] = {}
        self.schedule = Schedule(4)
        self.answer: list[tuple[float, str]] | None = None
        self.now = -1.0

    @rule(token=tokens, deadline=deadlines)
    def add(self, token: str, deadline: float) -> None:
        self.catalog[token] = deadline
        self.schedule.add(token, deadline)

    @rule(token=tokens)
    def discard(self, token: str) -> None:
        self.catalog.pop(token, None)
        self.schedule.discard(token)

    @precondition(lambda self: self.answer is None)
    @rule()
    def ask(self) -> None:
        if self.schedule.needs_load:
            self.schedule.begin_load()
            soonest = sorted((when, token) for token, when in self.catalog.items())
            self.answer = soonest

    @precondition(lambda self: self.answer is not None)
    @rule()
    def tell(self) -> None:
        assert self.answer is not None
        window = self.schedule.window
        self.schedule.load(self.answer[:window], complete=len(self.answer) <= window)
        self.answer = None

    @precondition(lambda self: self.answer is None)
    @rule(by=st.integers(0, 10))
    def expire(self, by: int) -> None:
        """Run until nothing is due, as the server's task does."""
        self.now += by
        while True:
            if self.schedule.needs_load:
                self.ask()
                self.tell()
            hints = self.schedule.due(self.now)
            if not hints:
                break
            for token in hints:
                deadline = self.catalog.get(token, math.inf)
                if deadline <= self.now:
                    del self.catalog[token]
                elif deadline < math.inf:
                    self.schedule.add(token, deadline)
        assert not [token for token, when in self.catalog.items() if when <= self.now]

    @invariant()
    def nothing_is_overslept(self) -> None:
        """The next deadline is never later than the catalog's soonest."""
        if self.answer is not None or self.schedule.needs_load or not self.catalog:
            return
        next_deadline = self.schedule.next_deadline()
        assert next_deadline is not None
        assert next_deadline <= min(self.catalog.values())

    @invariant()
    def the_window_is_kept(self) -> None:
        """Whatever is added."""
        assert len(self.schedule) <= self.schedule.window


TestScheduleMachine = ScheduleMachine.TestCase
TestScheduleMachine.settings = settings(max_examples=60, stateful_step_count=40)
