"""DeiT and ResMLP against a computation in NumPy, one image at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from language_model_cases import dense, gelu, norm
from numpy_layers import dense_variables, random_variables

import lowrank_jax as lrj
from experiments import models
from experiments.errors import RunError
from experiments.models import deit, resmlp
from experiments.models.deit import DeiT
from experiments.models.resmlp import ResMLP

HEADS, SIZE = 2, 12
DEIT = DeiT(num_classes=5, d_model=SIZE, heads=HEADS, layers=2, patch_size=4)
RESMLP = ResMLP(num_classes=5, d_model=SIZE, layers=2, patch_size=4)
CASES = [(DEIT, deit.FACTORIZED), (RESMLP, resmlp.FACTORIZED)]
# Six patches, two rows of three.
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3))


def patches(image):
    """Row by row; the pixels of each row by row, colours last."""
    corners = [(row, column) for row in (0, 4) for column in (0, 4, 8)]
    return np.stack([image[r : r + 4, c : c + 4].reshape(-1) for r, c in corners])


def merged(params):
    return jax.tree.map(np.asarray, lrj.merge(params))


def deit_in_numpy(params, image):
    p = merged(params)
    embedding = p["embedding"]
    tokens = dense(patches(image), embedding["patches"])
    x = np.concatenate([embedding["class_token"][0], tokens]) + embedding["positions"][0]
    width = SIZE // HEADS
    for index in range(2):
        layer = p[f"layer_{index}"]
        qkv = dense(norm(x, layer["attention_norm"], 1e-6), layer["attention"]["qkv"])
        heads = []
        for head in range(HEADS):
            start = head * width
            q, k, v = (qkv[:, SIZE * i + start : SIZE * i + start + width] for i in range(3))
            share = np.exp(q @ k.T / np.sqrt(width))
            heads.append(share / share.sum(1, keepdims=True) @ v)
        x = x + dense(np.concatenate(heads, 1), layer["attention"]["out"])
        inner = gelu(dense(norm(x, layer["feed_forward_norm"], 1e-6), layer["feed_forward"]["up"]))
        x = x + dense(inner, layer["feed_forward"]["down"])
    return dense(norm(x, p["norm"], 1e-6)[0], p["head"])


def resmlp_in_numpy(params, image):
    p = merged(params)

    def affine(x, weights):
        return weights["scale"] * x + weights["bias"]

    x = dense(patches(image), p["patches"])
    for index in range(2):
        layer = p[f"layer_{index}"]
        mixed = dense(affine(x, layer["patches_norm"]).T, layer["linear_tokens"]).T
        x = x + layer["patches_scale"] * mixed
        inner = gelu(dense(affine(x, layer["feed_forward_norm"]), layer["up"]))
        x = x + layer["feed_forward_scale"] * dense(inner, layer["down"])
    return dense(affine(x, p["norm"]).mean(0), p["head"])


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize(("model", "pattern"), CASES, ids=["deit", "resmlp"])
@pytest.mark.usefixtures("x64")
def test_against_numpy(model, pattern, low_rank):
    """The dense one as it is, the factorized one rematerialized."""
    variables = dense_variables(model, IMAGES, False)
    if low_rank:
        shapes = jax.eval_shape(lambda: variables)
        rule = lrj.Rule(pattern, lrj.RankScale(0.5))
        variables = random_variables({"params": lrj.factorize(shapes["params"], [rule])})
    compute = deit_in_numpy if model is DEIT else resmlp_in_numpy
    applied = model.clone(remat=low_rank)
    logits = jax.jit(lambda v: applied.apply(v, IMAGES, True))(variables)
    for image, found in zip(IMAGES, logits, strict=True):
        expected = compute(variables["params"], image)
        # The softmax of attention is float32.
        tolerance = 1e-5 if model is DEIT else 1e-10
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "tokens"), [("deit", 65), ("resmlp", 64)])
def test_other_images_and_patches(name, tokens):
    fields = {"name": name, "d_model": 24, "layers": 1, "patch_size": 4}
    model = models.build(fields | ({"heads": 3} if name == "deit" else {}), 10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)["params"]
    if name == "deit":
        assert shapes["embedding"]["positions"].shape == (1, tokens, 24)
        assert shapes["layer_0"]["attention"]["qkv"]["kernel"].shape == (24, 72)
    else:
        assert shapes["layer_0"]["linear_tokens"]["kernel"].shape == (tokens, tokens)
    odd = jax.ShapeDtypeStruct((1, 32, 30, 3), jnp.float32)
    with pytest.raises(RunError, match=r"model.patch_size=4 with images of 32 x 30 pixels"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), odd)


def test_initialization():
    images = jnp.zeros((1, 16, 16, 3))

    def start(model):
        params = jax.jit(lambda key: model.init(key, images, False)["params"])(jax.random.key(0))
        return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(params).items()}

    for path, values in start(DeiT(50, d_model=64, heads=2, layers=1, patch_size=4)).items():
        if path.startswith("embedding/patches"):
            bound = 48**-0.5  # PyTorch's default for 4 x 4 patches of three colours.
            assert np.abs(values).max() <= bound
            assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.2, path
        elif path.endswith(("kernel", "class_token", "positions")):
            assert abs(values.std() / 0.02 - 1) < 4 / np.sqrt(2 * values.size), path
        else:
            np.testing.assert_array_equal(values, float(path.endswith("scale")))
    for path, values in start(ResMLP(50, d_model=64, layers=1, patch_size=4)).items():
        if path == "patches/kernel":
            assert abs(values.std() * np.sqrt(48) - 1) < 0.05
        elif path.endswith("kernel") and path != "head/kernel":
            bound = np.sqrt(6 / sum(values.shape))
            assert 0.95 * bound < np.abs(values).max() <= bound
        else:
            norm_scale = float(path.endswith("norm/scale"))
            expected = 1e-6 if path.endswith("_scale") else norm_scale
            np.testing.assert_array_equal(values, np.float32(expected))


@pytest.mark.parametrize(("model", "pattern"), CASES, ids=["deit", "resmlp"])
def test_only_the_computation_is_bfloat16(model, pattern):
    model = model.clone(dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.float32(IMAGES), False))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    options = {"mutable": ["intermediates"], "capture_intermediates": True}
    logits, found = jax.eval_shape(
        lambda v: model.apply(v, jnp.float32(IMAGES), False, **options), variables
    )
    assert logits.dtype == jnp.float32
    assert found["intermediates"]["layer_1"]["__call__"][0].dtype == jnp.bfloat16


def test_heads_must_divide_the_features():
    with pytest.raises(RunError, match="d_model=10 with heads=4"):
        models.build({"name": "deit", "d_model": 10, "heads": 4}, 10)
