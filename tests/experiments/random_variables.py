"""Variables of a factorized model without compiling its initialization."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import lowrank_jax as lrj
from experiments import models


def factorized_shapes(name: str, model: nn.Module, images: Any, scale: float = 0.25) -> Any:
    """The shapes of a model's variables, factorized where the experiments do it."""
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), shape)
    chosen = models.find(name).factorization("conv")
    rules = [lrj.Rule(chosen.pattern, lrj.RankScale(scale), chosen.weight)]
    return {**variables, "params": lrj.factorize(variables["params"], rules)}


def random_variables(name: str, model: nn.Module, images: Any) -> Any:
    """Random values that keep activations near 1; running variances and scales are positive."""
    rng = np.random.default_rng(0)

    def values(leaf: Any) -> jax.Array:
        normal = rng.normal(size=leaf.shape)
        if len(leaf.shape) == 1:
            return jnp.asarray(0.5 + np.abs(normal), images.dtype)
        return jnp.asarray(normal / math.sqrt(math.prod(leaf.shape[:-1]) / 2), images.dtype)

    return jax.tree.map(values, factorized_shapes(name, model, images))
