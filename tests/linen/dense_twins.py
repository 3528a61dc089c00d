"""A model's variables with factorized kernels, and the same with the equal dense ones."""

import jax
import jax.numpy as jnp
import numpy as np


def replace(tree, path, kernel):
    """The tree with another kernel at ``path``."""
    name, *rest = path.split("/", 1)
    return tree | {name: replace(tree[name], rest[0], kernel) if rest else kernel}


def factored_and_dense(draw, params, weights):
    dense = params
    for path, weight in weights.items():
        params = replace(params, path, jax.tree.map(jnp.asarray, weight))
        dense = replace(dense, path, jnp.asarray(draw.dense(weight)))
    return params, dense


def random_variables(draw, model, x):
    """Positive float64 entries (variances are among them) in the tree the model initializes."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(np.abs(draw.array(*leaf.shape))), shapes)
