"""What Cuttlefish and Pufferfish factorize: numbers of kernels, and published parameter counts.

Counts are of the published code; those of DeiT and ResMLP are with the biases that it gives the
first factors as well, which are redundant and which we leave out.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import lowrank_jax as lrj
from experiments import models
from lowrank_jax.linen import add_factor_norms
from lowrank_jax.tree import kernels

# Classes and image size beside a model's fields.
CIFAR, IMAGENET = (10, 32), (1000, 224)
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "resnet18": ("resnet18", {}, CIFAR),
    "vgg19": ("vgg", {"depth": 19}, CIFAR),
    "resnet50": ("resnet50", {}, IMAGENET),
    "wide_resnet50": ("wide_resnet50", {}, IMAGENET),
    "deit_small": ("deit", {}, IMAGENET),
    "deit_base": ("deit", models.deit.SIZES["base"], IMAGENET),
    "resmlp": ("resmlp", {}, IMAGENET),
}


@functools.cache
def shapes(model: str, classes: int | None = None) -> Any:
    name, fields, (usual, size) = MODELS[model]
    built = models.build({"name": name, **fields}, classes or usual)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: built.init(jax.random.key(0), x, False), image)


def selection(model: str) -> models.RankSelection:
    found = models.find(MODELS[model][0]).rank_selection
    assert found is not None
    return found


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def matching(model: str, pattern: str) -> set[str]:
    return {path for path in kernels(shapes(model)["params"]) if re.fullmatch(pattern, path)}


def factorized(model: str, kept: str, scale: float, *, normed: bool = False) -> tuple[int, set]:
    """Parameters with the candidates but the kept ones factorized; and the ranks."""
    chosen, variables = selection(model), shapes(model)
    kind = lrj.LowRank if model.startswith(("deit", "resmlp")) else lrj.ChannelLowRank
    rules = [lrj.Rule(kept, None), lrj.Rule(chosen.candidates, lrj.RankScale(scale), kind)]
    params = lrj.factorize(variables["params"], rules)
    table = lrj.describe(params)
    if normed:
        rows = tuple(row for row in table.rows if re.fullmatch(chosen.normed, row.path))
        params, _ = add_factor_norms(params, variables["batch_stats"], lrj.Table(rows))
    return count(params), {row.rank for row in table.rows}


@pytest.mark.parametrize(
    ("model", "classes", "published"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("vgg19", 10, 20_035_018),
        ("vgg19", 100, 20_081_188),
        ("resnet50", 1000, 25_557_032),
        ("wide_resnet50", 1000, 68_883_240),
        ("deit_base", 1000, 86_567_656),
        ("resmlp", 1000, 44_690_488),
    ],
)
def test_dense_counts(model, classes, published):
    assert count(shapes(model, classes)["params"]) == published


@pytest.mark.parametrize(
    ("model", "published", "ranks"),
    [
        ("vgg19", 8_107_466, {128}),
        ("resnet50", 15_202_344, {128, 256}),
        ("wide_resnet50", 40_047_400, {256}),
    ],
)
def test_pufferfish_counts(model, published, ranks):
    """A quarter of full rank; of ResNet-50 the downsampling has rank 256."""
    kept = selection(model).kept_by_pufferfish
    assert factorized(model, kept, 1 / 4) == (published, ranks)


def test_pufferfish_resnet18():
    kept, ranks = selection("resnet18").kept_by_pufferfish, {16, 32, 64, 128}
    # In Cuttlefish's repository, with norms between the factors.
    assert factorized("resnet18", kept, 1 / 4, normed=True) == (3_338_122, ranks)
    # In Pufferfish's own, without; its stem has no norm either, of scale and bias for 64 channels.
    parameters, _ = factorized("resnet18", kept, 1 / 4)
    assert parameters - 2 * 64 == 3_336_138


def test_cuttlefish_resnet50_at_the_lowest_ranks():
    """A fifth of full rank, int(512 / 5) and int(1024 / 5) for the downsampling."""
    kept = selection("resnet50").kept
    assert factorized("resnet50", kept, 1 / 5, normed=True) == (14_272_340, {102, 204})


def test_cuttlefish_transformers_at_the_lowest_ranks():
    """Half of full rank. Published are biases of the first factors, one for each rank, as well."""
    parameters, ranks = factorized("deit_base", selection("deit_base").kept, 1 / 2)
    assert ranks == {384}
    assert parameters + 12 * 3 * 384 == 58_269_928
    parameters, ranks = factorized("resmlp", selection("resmlp").kept, 1 / 2)
    assert ranks == {192}
    assert parameters + 36 * 2 * 192 == 28_779_064


@pytest.mark.parametrize(
    ("model", "tracked", "by_cuttlefish", "by_pufferfish"),
    [
        ("resnet18", 10, 12, 14),
        ("vgg19", 12, 12, 7),
        ("resnet50", 10, 10, 10),
        ("wide_resnet50", 10, 10, 10),
        ("deit_small", 48, 36, 24),
        ("deit_base", 48, 36, 24),
        ("resmlp", 108, 72, 38),
    ],
)
def test_numbers_of_kernels(model, tracked, by_cuttlefish, by_pufferfish):
    chosen = selection(model)
    candidates = matching(model, chosen.candidates)
    for part in (chosen.tracked, chosen.kept, chosen.kept_by_pufferfish):
        assert matching(model, part) < candidates or part == chosen.candidates
    assert len(matching(model, chosen.tracked)) == tracked
    assert len(candidates - matching(model, chosen.kept)) == by_cuttlefish
    assert len(candidates - matching(model, chosen.kept_by_pufferfish)) == by_pufferfish
    assert matching(model, chosen.normed) == {path for path in candidates if "/conv" in path}
    # The candidates are what the kinds of the model factorize.
    for factorization in models.find(MODELS[model][0]).factorizations.values():
        assert matching(model, factorization.pattern) == candidates


def test_the_special_cases():
    """Where what is tracked is not what is factorized, and what stays dense by name."""

    def not_both(model):
        chosen = selection(model)
        changed = matching(model, chosen.candidates) - matching(model, chosen.kept)
        return changed ^ matching(model, chosen.tracked)

    assert not_both("resnet18") == {f"stage_2_block_1/conv{i}/kernel" for i in (1, 2)}
    assert not_both("vgg19") == not_both("resnet50") == set()
    assert not_both("deit_base") == {f"layer_{i}/attention/out/kernel" for i in range(12)}
    assert not_both("resmlp") == {f"layer_{i}/linear_tokens/kernel" for i in range(36)}
    kept = matching("resnet18", selection("resnet18").kept_by_pufferfish)
    assert kept == {f"stage_1_block_1/conv{i}/kernel" for i in (1, 2)}
    kept = matching("vgg19", selection("vgg19").kept)
    assert kept == {f"layer_{i}/conv/kernel" for i in (2, 3, 4)}
    shortcuts = matching("resnet50", r".*projection/kernel")
    assert shortcuts < matching("resnet50", selection("resnet50").candidates)
    assert len(shortcuts) == 4
    shortcuts = matching("resnet18", r".*projection/kernel")
    assert not shortcuts & matching("resnet18", selection("resnet18").candidates)
    assert len(shortcuts) == 3


@pytest.mark.parametrize("model", MODELS)
def test_stacks_are_the_blocks_in_order(model):
    chosen = selection(model)
    found: dict[str, list[str]] = {stack.name: [] for stack in chosen.stacks}
    for path in matching(model, chosen.candidates):
        prefixes = [path[: match.start()] for match in re.finditer("/", path)]
        (name,) = (
            stack.name
            for stack in chosen.stacks
            if any(re.fullmatch(stack.blocks, prefix) for prefix in prefixes)
        )
        found[name].append(path)
    assert all(found.values())
    if model.startswith(("deit", "resmlp")):
        return
    # Of convolutional networks whole stacks are kept, the first ones.
    kept = matching(model, chosen.kept)
    dense = [set(paths) <= kept for paths in found.values()]
    assert dense == sorted(dense, reverse=True)
    whole = [paths for paths, all_kept in zip(found.values(), dense, strict=True) if all_kept]
    assert kept == set().union(*whole)
