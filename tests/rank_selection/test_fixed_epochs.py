"""Pufferfish and Fixed: epochs and ranks that are chosen beforehand."""

import jax
import numpy as np
import pytest
from selection_cases import candidates

from lowrank_jax.factorize import factorize
from lowrank_jax.rank_selection import Cuttlefish, Fixed, Keep, Pufferfish, Restructure
from lowrank_jax.ranks import FixedRank, RankScale
from lowrank_jax.rules import Rule, resolve
from lowrank_jax.table import Table, describe
from lowrank_jax.weights import ChannelLowRank, SpatialLowRank, Tucker


def shapes(**named):
    return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in named.items()}


@pytest.mark.parametrize(
    "selector",
    [Fixed(candidates(a=(60, 90)), epoch=3), Pufferfish(candidates(a=(60, 90)), epoch=3)],
)
def test_the_switch_comes_before_its_epoch(selector):
    past = []
    for epoch in range(6):
        past.append(selector.measure({"a": np.zeros((60, 90))}))
        assert isinstance(selector.decide(past), Restructure if epoch >= 3 else Keep)
    with pytest.raises(ValueError, match="history is empty"):
        selector.decide([])


@pytest.mark.parametrize("kind", [ChannelLowRank, SpatialLowRank])
@pytest.mark.parametrize("fraction", [0.25, 1 / 16, 0.3])
def test_a_fraction_of_full_rank_rounded_down(kind, fraction):
    params = shapes(narrow=(3, 3, 4, 100), wide=(3, 3, 64, 130))
    full = {
        ChannelLowRank: {"narrow": 36, "wide": 130},
        SpatialLowRank: {"narrow": 12, "wide": 192},
    }[kind]
    table = resolve(params, [Rule(".*", FixedRank(1), kind)])
    decision = Pufferfish(table, epoch=0, fraction=fraction).decide([{}])
    ranks = {row.path: row.rank for row in decision.table.rows}
    assert ranks == {name: max(1, int(fraction * rank)) for name, rank in full.items()}
    # The table is that of the tree it makes, and counts everything.
    assert decision.table == describe(factorize(params, decision.table))


def test_ranks_are_rounded_up_to_multiples_and_break_even_keeps_dense():
    table = candidates(a=(100, 300), b=(16, 16))
    chosen = Pufferfish(table, epoch=0, multiple_of=8)
    decision = chosen.decide([{}])
    assert [(row.path, row.rank) for row in decision.table.rows] == [("a", 32)]
    assert decision.remark == (
        "b stays dense: from rank 8 on factors are no smaller, and its rank would be 8"
    )
    assert decision.table.parameters == 32 * 400 + 256
    assert str(decision).startswith(decision.remark) and "1 factorized kernels" in str(decision)


def test_fixed_takes_its_table_and_break_even_keeps_dense():
    params = shapes(deep=(16, 16), large=(16, 16), pointwise=(1, 1, 16, 16))
    rules = [
        Rule("deep", FixedRank(4), depth=3),
        Rule("large", FixedRank(8)),
        Rule("pointwise", FixedRank(3), Tucker),
    ]
    table = resolve(params, rules)
    decision = Fixed(table, epoch=0).decide([{}])
    assert decision.table.rows == (table.row("deep"), table.row("pointwise"))
    assert decision.remark.startswith("large stays dense")
    assert decision.table == describe(factorize(params, decision.table))


def test_misuse_is_named():
    table = candidates(a=(8, 8))
    for epoch in (-1, 1.5, True):
        with pytest.raises(ValueError, match=r"epoch=.*: expected a whole number of epochs"):
            Fixed(table, epoch=epoch)
        with pytest.raises(ValueError, match=r"epoch=.*: expected a whole number of epochs"):
            Pufferfish(table, epoch=epoch)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction"):
            Pufferfish(table, epoch=1, fraction=fraction)
    several = resolve(shapes(pointwise=(1, 1, 16, 16)), [Rule(".*", RankScale(0.5), Tucker)])
    for make in (Pufferfish, lambda table, epoch: Cuttlefish(table, latest_epoch=epoch)):
        with pytest.raises(ValueError, match="table of candidates is empty"):
            make(Table(()), epoch=1)
        with pytest.raises(ValueError, match=r"^pointwise: a Tucker has \d ranks"):
            make(several, epoch=1)
