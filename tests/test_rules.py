"""Rules: what they match, what they refuse, and the table they resolve to."""

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_cases import PlusDiagonal

from lowrank_jax import (
    ChannelLowRank,
    Energy,
    FixedRank,
    LowRank,
    ParamFraction,
    RankScale,
    Rule,
    SpatialLowRank,
    StableRank,
    Table,
    describe,
    factorize,
    merge,
    resolve,
)


def network():
    return {
        "block_1": {
            "conv1": {"kernel": jnp.ones((3, 3, 4, 8))},
            "conv2": {"kernel": jnp.ones((3, 3, 8, 8))},
        },
        "head": {"kernel": jnp.ones((8, 10)), "bias": jnp.ones(10)},
    }


def ranks(params, rules):
    return {row.path: row.rank for row in resolve(params, rules).rows}


def test_the_first_match_wins():
    rules = [
        Rule(".*conv1/kernel", FixedRank(2), SpatialLowRank),
        Rule(".*conv./kernel", FixedRank(3), ChannelLowRank),
    ]
    table = resolve(network(), rules)
    assert [(row.path, row.kind, row.rank) for row in table.rows] == [
        ("block_1/conv1/kernel", SpatialLowRank, 2),
        ("block_1/conv2/kernel", ChannelLowRank, 3),
    ]


def test_the_whole_path_must_match():
    with pytest.raises(ValueError, match="matches no path"):
        resolve(network(), [Rule("kernel", FixedRank(1))])
    with pytest.raises(ValueError, match="matches no path"):
        resolve(network(), [Rule("head/ker", FixedRank(1))])
    assert ranks(network(), [Rule("head/kernel", FixedRank(1))]) == {"head/kernel": 1}


def test_near_misses_are_listed():
    pattern = r"block_\d+/conv3/kernel"
    with pytest.raises(ValueError, match=r"near misses: .*block_1/conv1/kernel"):
        resolve(network(), [Rule(pattern, FixedRank(1), SpatialLowRank)])
    with pytest.raises(ValueError, match="no leaves at all"):
        resolve({}, [Rule(".*", FixedRank(1))])


def test_a_wholly_shadowed_rule_is_an_error():
    rules = [
        Rule(".*conv./kernel", FixedRank(3), SpatialLowRank),
        Rule("block_1/conv1/kernel", FixedRank(2), SpatialLowRank),
    ]
    with pytest.raises(ValueError, match=r"never used.*block_1/conv1/kernel.*earlier"):
        resolve(network(), rules)


def test_rank_none_keeps_kernels_dense():
    rules = [Rule("head/kernel", None), Rule(".*conv./kernel", FixedRank(2), SpatialLowRank)]
    assert set(ranks(network(), rules)) == {"block_1/conv1/kernel", "block_1/conv2/kernel"}
    with pytest.raises(ValueError, match="matches no path"):
        resolve(network(), [Rule("haed/kernel", None)])


def test_a_kernel_that_is_not_a_matrix_needs_its_kind_or_axes():
    with pytest.raises(ValueError, match=r"block_1/conv1/kernel: .*not a matrix.*in_axes"):
        resolve(network(), [Rule(".*conv1/kernel", FixedRank(1))])
    with pytest.raises(ValueError, match=r"head/bias: .*\(10,\).*not a matrix"):
        resolve(network(), [Rule("head/bias", FixedRank(1))])
    with pytest.raises(ValueError, match="head/bias: LowRank needs a kernel of at least 2 axes"):
        resolve(network(), [Rule("head/bias", FixedRank(1), in_axes=1)])
    with pytest.raises(ValueError, match="head/kernel: SpatialLowRank is for 2-D convolution"):
        resolve(network(), [Rule("head/kernel", FixedRank(1), SpatialLowRank)])
    with pytest.raises(ValueError, match=r"head/kernel: .*must be at least 1"):
        resolve(network(), [Rule("head/kernel", FixedRank(1), in_axes=0)])
    with pytest.raises(ValueError, match=r"scale: .*shape \(\)"):
        resolve({"scale": 1.0}, [Rule("scale", FixedRank(1))])
    table = resolve(network(), [Rule(".*conv1/kernel", FixedRank(1), in_axes=3)])
    assert table.rows[0].axes == {"in_axes": 3, "out_axes": 1}
    # With axes named, what is left in front are batch axes.
    table = resolve(network(), [Rule(".*conv1/kernel", FixedRank(1), out_axes=1)])
    assert table.rows[0].parameters == 9 * (4 + 8)


@pytest.mark.parametrize("kernel", [np.ones((4, 4), np.int32), np.ones((4, 4), np.complex64)])
def test_only_real_kernels_factorize(kernel):
    with pytest.raises(ValueError, match=r"k: .*only real kernels"):
        resolve({"k": kernel}, [Rule("k", FixedRank(1))])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Rule("(", FixedRank(1)), ValueError, "not a regular expression"),
        (lambda: Rule(".*", FixedRank(1), depth=4), ValueError, "expected 2 or 3"),
        (lambda: Rule(".*", FixedRank(1), "LowRank"), TypeError, "not a kind of weight"),
        (lambda: Rule(".*", FixedRank(1), axes=2), TypeError, "has no axes axes"),
        (lambda: Rule(".*", FixedRank(1), SpatialLowRank, in_axes=2), TypeError, "has: none"),
        (lambda: resolve(network(), [".*"]), TypeError, "is not a Rule"),
        (lambda: resolve(network(), None), TypeError, "not a list of rules"),
        (lambda: resolve(network(), Rule(".*", None)), TypeError, "not a list of rules"),
    ],
)
def test_what_is_no_rule(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_no_rules_factorize_nothing():
    table = resolve(network(), [])
    assert table.rows == () and table.ratio == 1.0
    assert table.parameters == 288 + 576 + 80 + 10


def test_rules_may_come_from_a_generator():
    params = {"k": jnp.ones((4, 4))}
    assert ranks(params, (rule for rule in [Rule("k", FixedRank(1))])) == {"k": 1}


def test_depth_and_totals():
    table = resolve(
        network(),
        [Rule(".*conv./kernel", RankScale(0.5), SpatialLowRank, depth=3)],
    )
    # dims (kw in, kh out) = (12, 24) and (24, 24), rank 12 in both.
    by_hand = 12 * (12 + 24) + 144 + 12 * (24 + 24) + 144
    assert table.parameters == by_hand + 90
    assert table.dense_parameters == 288 + 576 + 90
    assert table.ratio == (by_hand + 90) / 954
    assert [row.breaks_even for row in table.rows] == [True, True]


def test_resolving_needs_values_only_where_a_rule_does():
    abstract = jax.eval_shape(network)
    rules = [Rule(".*conv./kernel", ParamFraction(0.3), SpatialLowRank)]
    assert resolve(abstract, rules) == resolve(network(), rules)
    for rank in (Energy(0.9), StableRank()):
        with pytest.raises(TypeError, match=r"head/kernel: .*needs the values"):
            resolve(abstract, [Rule("head/kernel", rank)])


def test_value_rules_read_the_kernel_in_the_forward_matricisation():
    generator = np.random.default_rng(0)
    # Rank 2 as (kw in) x (kh out), and far more read in any other order.
    left, right = generator.standard_normal((3 * 4, 2)), generator.standard_normal((2, 3 * 8))
    kernel = (left @ right).reshape(3, 4, 3, 8).transpose(2, 0, 1, 3)
    params = {"k": kernel}
    assert ranks(params, [Rule("k", Energy(1 - 1e-12), SpatialLowRank)]) == {"k": 2}
    assert ranks(params, [Rule("k", Energy(1 - 1e-12), ChannelLowRank)]) == {"k": 6}
    values = np.linalg.svd(left @ right, compute_uv=False)
    stable = int(np.ceil(np.sum(values**2) / values[0] ** 2))
    assert ranks(params, [Rule("k", StableRank(), SpatialLowRank)]) == {"k": stable}


def test_not_finite_and_traced_kernels_name_the_path():
    bad = {"a": {"k": jnp.ones((4, 4)).at[1, 2].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"^a/k: 1 of 16 entries are not finite$"):
        resolve(bad, [Rule("a/k", Energy(0.5))])
    with pytest.raises(TypeError, match=r"^a/k: its values are being traced"):
        jax.jit(lambda p: resolve(p, [Rule("a/k", Energy(0.5))]) and 1)(bad)
    # Rules that need shapes only work on tracers: planning inside eval_shape.
    jax.eval_shape(lambda p: resolve(p, [Rule("a/k", FixedRank(1))]).parameters, bad)


def test_factorized_already():
    params = network()
    rules = [Rule(".*conv./kernel", FixedRank(2), SpatialLowRank)]
    done = factorize(params, rules)
    assert resolve(done, rules) == resolve(params, rules) == describe(done)
    for other in (
        Rule(".*conv./kernel", FixedRank(3), SpatialLowRank),
        Rule(".*conv./kernel", FixedRank(2), ChannelLowRank),
        Rule(".*conv./kernel", FixedRank(2), SpatialLowRank, depth=3),
        Rule(".*conv./kernel", FixedRank(2), in_axes=3),
    ):
        with pytest.raises(ValueError, match=r"conv1/kernel is factorized already.*refactorize"):
            resolve(done, [other])
    with pytest.raises(ValueError, match="keeps it dense: merge it first"):
        resolve(done, [Rule(".*conv1/kernel", None)])
    # A weight that no rule matches stays in the table.
    table = resolve(done, [Rule("head/kernel", FixedRank(1))])
    assert len(table.rows) == 3


def test_json_both_ways():
    rules = [
        Rule(".*conv./kernel", FixedRank(2), SpatialLowRank, depth=3),
        Rule("head/kernel", RankScale(0.5), in_axes=1),
    ]
    table = resolve(network(), rules)
    again = Table.from_json(table.to_json())
    assert again == table and again.parameters == table.parameters
    assert json.loads(table.to_json())["rows"][0]["kind"] == "SpatialLowRank"
    assert again.differences(table) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"rows": [], "other_parameters": null}',
        '{"rows": [{"path": "a"}], "other_parameters": 0}',
        '{"rows": [{"path": "a", "kind": "Unheard"}], "other_parameters": 0}',
    ],
)
def test_json_that_is_no_table(text):
    with pytest.raises(ValueError):
        Table.from_json(text)


def test_differences_say_what_would_not_fit():
    params = network()
    one = resolve(params, [Rule(".*conv./kernel", FixedRank(2), SpatialLowRank)])
    two = resolve(
        params,
        [
            Rule(".*conv1/kernel", FixedRank(2), ChannelLowRank),
            Rule("head/kernel", FixedRank(2)),
        ],
    )
    lines = one.differences(two)
    assert len(lines) == 3
    assert "block_1/conv1/kernel: expected SpatialLowRank" in lines[0]
    assert "found ChannelLowRank" in lines[0]
    assert lines[1].startswith("block_1/conv2/kernel") and "a dense kernel" in lines[1]
    assert lines[2].startswith("head/kernel: expected a dense kernel")
    wider = dataclasses.replace(one, other_parameters=one.other_parameters + 7)
    assert one.differences(wider) == [
        f"parameters outside the factorized kernels: expected {one.other_parameters}, "
        f"found {wider.other_parameters}"
    ]
    for rank, depth in ((3, 2), (2, 3)):
        other = resolve(
            params, [Rule(".*conv./kernel", FixedRank(rank), SpatialLowRank, depth=depth)]
        )
        assert len(one.differences(other)) == 2


def test_the_printed_table_marks_break_even():
    table = resolve(
        network(),
        [
            Rule(".*conv1/kernel", FixedRank(7), SpatialLowRank),
            Rule(".*conv2/kernel", FixedRank(9), SpatialLowRank),
        ],
    )
    lines = str(table).splitlines()
    # 8 * 36 = 288: rank 8 is as large as the dense kernel; 12 * 48 = 576: rank 12.
    assert re.search(r"conv1/kernel .*3x3x4x8 +7 +2 +288 +252 +87.5%", lines[2])
    assert re.search(r"conv2/kernel .*3x3x8x8 +9 +2 +576 +432 +75.0%", lines[3])
    assert "*" not in str(table)
    table = resolve(network(), [Rule(".*conv1/kernel", FixedRank(8), SpatialLowRank)])
    assert " 8* " in str(table) and "100.0%" in str(table)
    assert "at or above break-even" in str(table)
    assert len({len(line) for line in str(table).splitlines()[:3]}) == 1
    assert "0 factorized kernels" in str(resolve(network(), []))


def test_describe():
    params = network()
    assert describe(params).rows == ()
    rules = [Rule(".*conv./kernel", FixedRank(2), SpatialLowRank, depth=3)]
    table = resolve(params, rules)
    assert describe(factorize(params, rules)) == table
    assert describe(factorize(jax.eval_shape(network), rules)) == table
    assert describe(merge(factorize(params, rules))) == describe(params)


def test_describe_counts_kinds_that_know_nothing_but_dense():
    weight = PlusDiagonal(u=jnp.ones((3, 1)), vt=jnp.ones((1, 3)), diagonal=jnp.ones(3))
    table = describe({"k": weight, "b": jnp.ones(2)})
    assert (table.parameters, table.dense_parameters) == (11, 11)
    assert "PlusDiagonal" in str(table)
    assert Table.from_json(table.to_json()) == table


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any = None


def test_trees_of_any_containers():
    tree = {
        "list": [jnp.ones((4, 4)), (jnp.ones((4, 4)), None)],
        "layer": Layer(kernel=jnp.ones((4, 4))),
        7: Layer(kernel=jnp.ones((4, 4)), bias=jnp.ones(4)),
    }
    tree = {str(key): value for key, value in tree.items()}
    rules = [Rule(r"list/0|list/1/0|layer/kernel|7/kernel", FixedRank(1))]
    assert set(ranks(tree, rules)) == {"list/0", "list/1/0", "layer/kernel", "7/kernel"}
    done = factorize(tree, rules)
    assert isinstance(done["layer"], Layer) and isinstance(done["layer"].kernel, LowRank)
    assert done["list"][1][1] is None and isinstance(done["list"][1], tuple)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merge(done), tree)
    assert ranks(jnp.ones((4, 4)), [Rule("", FixedRank(1))]) == {"": 1}


def test_two_leaves_with_one_path_are_refused():
    tree = {"a/b": jnp.ones((4, 4)), "a": {"b": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="two leaves of the tree have the path a/b"):
        resolve(tree, [Rule("a/b", FixedRank(1))])
