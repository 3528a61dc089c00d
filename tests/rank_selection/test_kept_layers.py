"""Which stacks stay dense, from their times."""

import json

import pytest

from lowrank_jax.rank_selection import KeptLayers, StackTime


def layers(*speed_ups, threshold=1.5):
    times = [StackTime(f"stage_{i}", 0.25 * x, 0.25) for i, x in enumerate(speed_ups, 1)]
    return KeptLayers(tuple(times), threshold)


@pytest.mark.parametrize(
    ("speed_ups", "kept"),
    [
        ((1.1, 1.4, 1.6, 3.0), 2),
        ((1.5, 1.0), 0),  # Exactly the threshold reaches it; what follows is not asked.
        ((1.1, 2.0, 1.2), 1),
        ((0.9, 1.49, 1.2), 1),  # None is worth it: from the best one on.
    ],
)
def test_stacks_before_the_first_that_is_worth_it_stay_dense(speed_ups, kept):
    found = layers(*speed_ups)
    assert found.kept == tuple(f"stage_{i}" for i in range(1, kept + 1))
    assert [time.speed_up for time in found.times] == pytest.approx(speed_ups)


def test_it_says_loudly_that_none_is_worth_it():
    assert not layers(1.0, 1.1).worth_it and layers(1.0, 1.6).worth_it
    assert "NO STACK IS 1.5 TIMES AS FAST" in str(layers(1.0, 1.1))


def test_json_both_ways():
    found = layers(1.234567890123, 1.7, 1.1, threshold=1.3)
    text = found.to_json()
    assert KeptLayers.from_json(text) == found
    data = json.loads(text)
    assert [stack["kept"] for stack in data["stacks"]] == [True, False, False]
    for bad in ("", "{}", "[]", '{"threshold": 1.5, "stacks": [{"name": "a"}]}'):
        with pytest.raises(ValueError, match="not the times of stacks"):
            KeptLayers.from_json(bad)


def test_it_prints_as_a_table():
    lines = str(layers(1.2, 2.0)).splitlines()
    assert lines[2].split() == ["stage_1", "300.000", "250.000", "1.20", "stays", "dense"]
    assert lines[3].split() == ["stage_2", "500.000", "250.000", "2.00", "factorized"]
    assert lines[-1].endswith("1.5")


def test_misuse_is_named():
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"stage_1: .* is not a time"):
            StackTime("stage_1", seconds, 1.0)
        with pytest.raises(ValueError, match=r"stage_1: .* is not a time"):
            StackTime("stage_1", 1.0, seconds)
        with pytest.raises(ValueError, match="threshold"):
            layers(1.2, threshold=seconds)
    with pytest.raises(ValueError, match=r"names of their own, found \[\]"):
        layers()
    with pytest.raises(ValueError, match="names of their own, found"):
        KeptLayers((StackTime("a", 1.0, 1.0), StackTime("a", 1.0, 1.0)))
