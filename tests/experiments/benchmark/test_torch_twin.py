"""The PyTorch twin is the same network with the same training step as ours."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank_jax as lrj
from experiments import models, recipe
from experiments.benchmark import jax_step
from experiments.benchmark.contenders import Contender
from experiments.benchmark.networks import RESNET20, TINY, WIDE_RESNET32
from experiments.tasks.classification import Network

torch = pytest.importorskip("torch")

from experiments.benchmark import torch_step, torch_twin  # noqa: E402

DECAY = 1e-4


def twin(network, rank_scale, classes=10):
    return torch_twin.twin(network.model, network.depth, network.width, rank_scale, classes)


def contender(network, rank_scale, implementation="ours"):
    return Contender(implementation, network, rank_scale, 4, "float32", "cpu", 1)


@pytest.mark.parametrize("network", [RESNET20, WIDE_RESNET32], ids=lambda network: network.name)
def test_parameter_counts_are_ours(network):
    for rank_scale in network.rank_scales:
        settled = jax_step.config(contender(network, rank_scale))
        dense = jax.eval_shape(Network.of(settled, 10, 32).init, jax.random.key(0))["params"]
        table = lrj.resolve(dense, recipe.rules(settled, dense))
        count = sum(parameter.numel() for parameter in twin(network, rank_scale).parameters())
        assert count == table.parameters


def test_published_parameter_counts():
    def count(network, rank_scale):
        return sum(parameter.numel() for parameter in twin(network, rank_scale).parameters())

    assert [count(RESNET20, scale) for scale in (0, 0.111, 0.333)] == [269722, 63850, 188314]
    scales = (0, 0.07177734375, 0.0478515625, 0.02392578125)
    published = [7427914, 1109898, 743370, 373194]
    assert [count(WIDE_RESNET32, scale) for scale in scales] == published


def test_multiply_adds_in_closed_form():
    image = torch.zeros(1, 3, 32, 32)
    # Stem, then the stages of ResNet-20 at 32, 16 and 8 pixels: 9 * in * out each, then the head.
    dense = 1024 * 27 * 16 + 9 * (
        1024 * 6 * 16 * 16
        + 256 * (16 * 32 + 5 * 32 * 32)
        + 64 * (32 * 64 + 5 * 64 * 64)
    )  # fmt: skip
    assert torch_step.multiply_adds(twin(RESNET20, 0), image) == dense + 640
    # Ranks 5, 11, 21; the first stage's input is as tall as the image where the width is halved.
    factored = 1024 * 27 * 16 + 3 * (
        1024 * 6 * (16 * 5 + 5 * 16)
        + (512 * 16 * 11 + 256 * 11 * 32) + 256 * 5 * (32 * 11 + 11 * 32)
        + (128 * 32 * 21 + 64 * 21 * 64) + 64 * 5 * (64 * 21 + 21 * 64)
    )  # fmt: skip
    assert torch_step.multiply_adds(twin(RESNET20, 0.111), image) == factored + 640


def in_torch(array, place):
    """An array of a Flax tree in the shape of the PyTorch parameter that `place` names."""
    array = np.asarray(array)
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)  # HWIO to OIHW
    elif array.ndim == 2:
        array = array.T
    return torch.tensor(array), place


def by_torch_name(params):
    """Our parameters as {name in the twin: tensor}."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=lrj.is_factorized):
        *modules, last = [key.key for key in path]
        if modules[0].startswith("block_"):
            modules[:1] = ["blocks", str(int(modules[0].removeprefix("block_")) - 1)]
        prefix = ".".join(modules)
        if lrj.is_factorized(leaf):
            named[f"{prefix}.first.weight"] = leaf.u
            named[f"{prefix}.second.weight"] = leaf.vt
        else:
            named[f"{prefix}.{names[last]}"] = leaf
    return {name: in_torch(value, name)[0] for name, value in named.items()}


@pytest.mark.parametrize(
    ("model", "rank_scale"),
    [("resnet", 0.0), pytest.param("projection_resnet", 0.111, marks=pytest.mark.slow)],
)
def test_logits_and_training_steps_in_float64(x64, model, rank_scale):
    network = dataclasses.replace(TINY, model=model)
    who = contender(network, rank_scale)
    settled = jax_step.config(who)
    # Without a dtype of its own, a model computes in that of its parameters.
    built = models.find(model).build(num_classes=10, depth=8, width=1)
    task = jax_step.task(who, settled)
    ours = dataclasses.replace(task, network=dataclasses.replace(task.network, model=built))
    shapes = jax.eval_shape(ours.network.init, jax.random.key(3))
    shapes["params"] = lrj.factorize(shapes["params"], recipe.rules(settled, shapes["params"]))
    generator = np.random.default_rng(0)
    params, state = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0.1, 0.3, leaf.shape)),
        (shapes.pop("params"), shapes),
    )
    images = generator.normal(size=(4, 32, 32, 3))
    labels = np.array([3, 1, 4, 1])

    theirs = twin(network, rank_scale).double()
    loaded = theirs.load_state_dict(by_torch_name(params), strict=False)
    assert not loaded.unexpected_keys
    left = {name.rpartition(".")[2] for name in loaded.missing_keys}
    assert left == {"running_mean", "running_var"}

    @jax.jit
    def apply(params):
        variables = {"params": params, **state}
        return built.apply(variables, images, True, mutable=list(state))[0]

    logits = apply(params)
    batch = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels)
    expected = theirs(batch[0]).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())

    tx = optax.chain(recipe.decay(settled, 1.0), optax.sgd(0.1, momentum=0.9))
    memory = tx.init(params)
    descent = torch_twin.optimizer(theirs, DECAY)
    assert settled.weight_decay == DECAY
    noise = jax.random.key(0)
    gradient = jax.jit(
        jax.grad(lambda params: ours.loss(params, state, (images, labels), noise)[0])
    )
    for _ in range(2):  # The second with momentum.
        updates, memory = tx.update(gradient(params), memory, params)
        params = optax.apply_updates(params, updates)
        descent.zero_grad()
        torch.nn.functional.cross_entropy(theirs(batch[0]), batch[1]).backward()
        torch_twin.add_frobenius_decay(theirs, DECAY)
        descent.step()
    found = dict(theirs.named_parameters())
    for name, value in by_torch_name(params).items():
        scale = float(value.abs().max())
        np.testing.assert_allclose(
            found[name].detach(), value, rtol=1e-9, atol=1e-9 * scale, err_msg=name
        )


def test_frobenius_decay_against_autograd_of_the_composed_kernel():
    torch.manual_seed(0)
    layer = torch_twin.FactoredConv2d(3, 5, 3, 1, 0.4).double()
    first, second = layer.first.weight, layer.second.weight
    kernel = torch.einsum("orh,riw->oihw", second[..., 0], first[:, :, 0])
    (0.25 * kernel.square().sum()).backward()
    expected = [first.grad.clone(), second.grad.clone()]
    for factor in (first, second):
        factor.grad = torch.zeros_like(factor)
    torch_twin.add_frobenius_decay(layer, 0.5)
    for factor, gradient in zip((first, second), expected, strict=True):
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-12, atol=1e-14)


def test_a_turn_trains():
    step = torch_step.build(contender(TINY, 0.111, "torch"))
    before = [parameter.detach().clone() for parameter in step.network.parameters()]
    step()
    after = list(step.network.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert step.facts["parameters"] == sum(parameter.numel() for parameter in after)
    assert step.device_peak_bytes() is None
