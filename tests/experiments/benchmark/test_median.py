"""The order-statistic interval against SciPy's binomial distribution and against chance itself."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import stats

from experiments.benchmark import contenders, markdown, median, targets


@pytest.mark.parametrize("n", [1, 5, 6, 7, 8, 9, 20, 21, 100])
def test_the_rank_is_the_largest_that_covers(n):
    covering = [k for k in range(1, n) if stats.binom.cdf(k - 1, n, 0.5) <= 0.025 + 1e-12]
    assert median.interval_rank(n) == max(covering, default=0)


def test_an_interval_covers_the_median_of_a_skewed_distribution():
    draws = np.random.default_rng(0).exponential(size=(4000, 20))
    found = [median.estimate(row) for row in draws]
    covered = np.mean([one.low <= np.log(2) <= one.high for one in found])
    expected = 1 - 2 * stats.binom.cdf(5, 20, 0.5)  # 0.9586
    assert abs(covered - expected) < 5 * np.sqrt(expected * (1 - expected) / len(draws))


def test_too_few_samples_have_no_interval():
    assert median.estimate([2.0, 1.0, 9.0]) == median.Estimate(2.0, None, None)
    assert median.interval_rank(median.FEWEST) == 1
    assert median.interval_rank(median.FEWEST - 1) == 0


@pytest.mark.parametrize("module", [contenders, markdown, median, targets])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
