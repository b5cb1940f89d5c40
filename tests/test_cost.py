"""Times side by side."""

import time

import pytest

from benchmarks.cost import median_ratio, time_in_turn


def test_calls_take_turns_and_the_first_round_does_not_count():
    order = []
    seconds = time_in_turn({"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.01))}, 3)
    assert order == ["a", "b"] * 4
    assert len(seconds["a"]) == len(seconds["b"]) == 3
    assert min(seconds["b"]) >= 0.01


def test_the_interval_of_a_median_by_order():
    base = [1.0] * 9
    ratio, interval = median_ratio([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0], base)
    # Of nine, one may lie beyond each end: P(at most one of nine below the median) = 10/512 = 2.0 %
    assert ratio == 5 and interval == [2, 8]
    with pytest.raises(ValueError, match="there are 5 pairs, allowed are 6 or more"):
        median_ratio(base[:5], base[:5])


def test_ratios_are_paired():
    slow_machine = [1.0, 10.0, 1.0, 10.0, 1.0, 10.0]
    assert median_ratio([2 * x for x in slow_machine], slow_machine) == (2.0, [2.0, 2.0])
