"""Rematerialization: the same numbers from fewer values kept for the backward pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import factorized_shapes, random_variables

import lowrank_jax as lrj
from experiments import models
from experiments.models.projection_resnet import ProjectionResNet


@pytest.mark.usefixtures("x64")
def test_same_tree_loss_statistics_and_gradients() -> None:
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    results = []
    for remat in (False, True):
        model = ProjectionResNet(num_classes=10, depth=8, remat=remat)
        variables = random_variables("projection_resnet", model, images)

        def loss(params: Any, model: Any = model, variables: Any = variables) -> Any:
            everything = {**variables, "params": params}
            logits, new = model.apply(everything, images, True, mutable=["batch_stats"])
            return jnp.sum(logits**2), new

        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    kernels = jax.tree.leaves(results[1][1], is_leaf=lrj.is_factorized)
    assert sum(map(lrj.is_factorized, kernels)) == 8
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(one).max())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_less_is_kept_for_the_backward_pass(precision: str) -> None:
    """Of each of nine blocks hardly more than its input and its parameters."""
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    kept = {}
    for remat in (False, True):
        model = models.build(
            {"name": "resnet", "depth": 20, "width": 1}, 10, precision=precision, remat=remat
        )

        def backward(variables: Any, images: jax.Array, model: Any = model) -> Any:
            def logits(params: Any) -> Any:
                everything = {**variables, "params": params}
                return model.apply(everything, images, True, mutable=["batch_stats"])[0]

            return jax.vjp(logits, variables["params"])[1]  # A pytree of what it keeps.

        variables = factorized_shapes("resnet", model, images)
        kept[remat] = sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(jax.eval_shape(backward, variables, images))
        )
    size = jnp.dtype(precision).itemsize
    inputs = size * 8 * (4 * 32 * 32 * 16 + 3 * 16 * 16 * 32 + 2 * 8 * 8 * 64)
    assert inputs < kept[True] < kept[False] / 3
