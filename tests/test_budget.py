"""The published parameter counts and the published search for a parameter budget, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import cifar_resnet, vgg19

from lowrank_jax import (
    Energy,
    LowRank,
    RankScale,
    Rule,
    SpatialLowRank,
    factorize,
    resolve,
    target_ratio,
)

BLOCKS = r"block_.*/(conv\d|shortcut)/kernel"

PUBLISHED = {
    20: {
        "dense": 269722,
        0.037: 23482,
        0.111: 63850,
        0.333: 188314,
        1.0: 560026,
        "deep": 850330,
        3.0: 1675162,
        9.0: 5020570,
    },
    32: {
        "dense": 464154,
        0.037: 38970,
        0.111: 107370,
        0.333: 318234,
        1.0: 947994,
        "deep": 1431834,
        3.0: 2837274,
        9.0: 8505114,
    },
    56: {
        "dense": 853018,
        0.037: 69946,
        0.111: 194410,
        0.333: 578074,
        1.0: 1723930,
        "deep": 2594842,
        3.0: 5161498,
        9.0: 15474202,
    },
}


def rules_for(setting):
    if setting == "deep":
        return [Rule(BLOCKS, RankScale(1.0), SpatialLowRank, depth=3)]
    return [Rule(BLOCKS, RankScale(setting), SpatialLowRank)]


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("depth", PUBLISHED)
def test_published_counts(depth, classes):
    tree = cifar_resnet(depth, classes)
    head = 5850 if classes == 100 else 0
    for setting, count in PUBLISHED[depth].items():
        if setting == "dense":
            assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == count + head
            continue
        rules = rules_for(setting)
        table = resolve(tree, rules)
        assert table.parameters == count + head
        assert table.dense_parameters == PUBLISHED[depth]["dense"] + head
        abstract = factorize(tree, table)
        assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count + head


@pytest.mark.parametrize(("depth", "modules"), [(20, 18), (32, 30), (44, 42), (56, 54), (110, 108)])
def test_counts_at_every_depth_follow_the_line(depth, modules):
    # The network grows by the same blocks, so counts are linear in the depth.
    tree = cifar_resnet(depth)
    for setting, count in PUBLISHED[20].items():
        line = count + (PUBLISHED[32][setting] - count) * (depth - 20) // 12
        if setting == "dense":
            assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == line
        else:
            table = resolve(tree, rules_for(setting))
            assert table.parameters == line
            assert len(table.rows) == modules


@pytest.mark.parametrize(
    ("ratio", "scale", "count"),
    [
        (0.15, 0.07177734375, 1109898),
        (0.1, 0.0478515625, 743370),
        (0.05, 0.02392578125, 373194),
        (0.02, 0.0087890625, 150090),
    ],
)
def test_published_search_resnet32x2(ratio, scale, count):
    tree = cifar_resnet(32, widths=(64, 128, 256), projection=True)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 7427914
    assert target_ratio(tree, rules_for, ratio) == scale
    table = resolve(tree, rules_for(scale))
    assert (table.parameters, len(table.rows)) == (count, 32)
    assert table.ratio == count / 7427914


def test_published_ranks_resnet32x2():
    table = resolve(
        cifar_resnet(32, widths=(64, 128, 256), projection=True), rules_for(0.0478515625)
    )
    ranks = {row.shape[0] * row.shape[3]: row.rank for row in table.rows}
    assert ranks == {128: 6, 192: 9, 256: 12, 384: 18, 768: 37}


@pytest.mark.parametrize(
    ("ratio", "scale", "count"),
    [
        (0.15, 0.07177734375, 2996554),
        (0.1, 0.047607421875, 1996618),
        (0.05, 0.023681640625, 992650),
        (0.02, 0.00927734375, 397642),
    ],
)
def test_published_search_vgg19(ratio, scale, count):
    tree = vgg19()
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 20035018

    def rules(s):
        return [Rule(r"conv_0/kernel", None), Rule(r"conv_.*", RankScale(s), SpatialLowRank)]

    assert target_ratio(tree, rules, ratio) == scale
    table = resolve(tree, rules(scale))
    assert (table.parameters, len(table.rows)) == (count, 15)


def test_the_search_reads_no_values():
    abstract = {"kernel": jax.ShapeDtypeStruct((40, 30), "float32")}
    concrete = {"kernel": jnp.full((40, 30), np.nan)}

    def rules(s):
        return [Rule("kernel", RankScale(s), LowRank)]

    assert target_ratio(abstract, rules, 0.3) == target_ratio(concrete, rules, 0.3)
    with pytest.raises(TypeError, match=r"kernel: .*needs the values"):
        target_ratio(abstract, lambda s: [Rule("kernel", Energy(0.5))], 0.3)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_impossible_ratios(ratio):
    with pytest.raises(ValueError, match="between 0 and 1"):
        target_ratio({"kernel": jnp.ones((4, 4))}, lambda s: [Rule(".*", RankScale(s))], ratio)
