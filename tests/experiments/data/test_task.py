"""What the classification task makes of a data set: its canvas, its normalisation, augmentation."""

import fabricated
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from experiments import arguments, tasks
from experiments.data import load
from experiments.data.pipeline import evaluation_batch
from experiments.tasks.task import Batch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# As printed by the published code.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
TINY_IMAGENET = ((0.480246, 0.448072, 0.397548), (0.276986, 0.269064, 0.282082))


@pytest.fixture(autouse=True)
def files(data_dir, cifar10_arrays, cifar100_arrays, register, small_tiny_imagenet):
    """Small sets under the names of the genuine ones."""
    fabricated.write_cifar10_binary(data_dir / "cifar-10-binary.tar.gz", cifar10_arrays)
    fabricated.write_cifar100_binary(data_dir / "cifar-100-binary.tar.gz", cifar100_arrays)
    members = fabricated.tiny_imagenet_members(fabricated.tiny_imagenet_images())
    fabricated.write_tiny_imagenet(data_dir / "tiny-imagenet-200.zip", members)
    for name in ("cifar10", "cifar100", "tiny_imagenet"):
        register(name, data_dir)


def task(data, model="resnet", protocol="published", **augment):
    config = base.get_config()
    config.data.name, config.model.name, config.protocol = data, model, protocol
    config.model.depth = 8
    config.batch_size = 4
    config.augment.update(augment)
    return tasks.load(arguments.settle(config))


@pytest.mark.parametrize(
    ("model", "data", "statistics"),
    [
        ("resnet", "cifar10", IMAGENET),
        ("resnet", "cifar100", IMAGENET),
        ("resnet", "digits", IMAGENET),
        ("projection_resnet", "cifar10", CIFAR10),
        ("projection_resnet", "cifar100", CIFAR100),
        ("projection_resnet", "tiny_imagenet", TINY_IMAGENET),
        ("projection_resnet", "digits", None),
    ],
)
def test_published_normalisation_is_that_of_the_model_family(model, data, statistics):
    """Digits have no published constants, so their own serve."""
    found = task(data, model).pipeline
    mean, std = statistics or (load(data).mean, load(data).std)
    np.testing.assert_allclose(found.mean, mean, atol=5e-7)
    np.testing.assert_allclose(found.std, std, atol=5e-7)


@pytest.mark.parametrize("model", ["resnet", "projection_resnet"])
def test_our_normalisation_is_by_the_data_set_itself(model):
    found, data = task("cifar10", model, protocol="ours").pipeline, load("cifar10")
    assert (found.mean, found.std) == (data.mean, data.std)


def test_normalised_by_its_own_statistics_a_set_has_mean_0_and_deviation_1():
    ours = task("fashion_small", protocol="ours")
    images, labels = load("fashion_small").train_images, load("fashion_small").train_labels
    batch, _ = evaluation_batch(
        jnp.asarray(images[:1000]), jnp.asarray(labels[:1000]), jnp.arange(1000), ours.pipeline
    )
    inner = np.asarray(batch, np.float64)[:, 2:30, 2:30, 0]
    assert abs(inner.mean()) < 0.05 and abs(inner.std() - 1) < 0.05


@pytest.mark.parametrize(("data", "size"), [("cifar10", 32), ("digits", 32), ("tiny_imagenet", 64)])
def test_the_canvas_of_a_data_set_is_the_networks_input(data, size):
    made = task(data)
    images, labels = made.batch(made.splits, jnp.arange(4), jnp.int32(0), Batch(4))
    assert images.shape == made.network.example(4).shape == (4, size, size, 3)
    variables = jax.eval_shape(made.network.init, jax.random.key(0))
    state = {"batch_stats": variables["batch_stats"]}
    logits = jax.eval_shape(made.network.apply, variables["params"], state, images)
    assert logits.shape == (4, load(data).num_classes)
    assert labels.shape == (4,)


def test_tiny_images_are_taken_as_they_are():
    made, data = task("tiny_imagenet", crop=0, flip=False), load("tiny_imagenet")
    batch, _ = made.batch(made.splits, jnp.arange(33), jnp.int32(0), Batch(33))
    pixels = np.asarray(batch) * made.pipeline.std + made.pipeline.mean
    np.testing.assert_allclose(pixels, data.train_images / 255, atol=1e-6)


def test_augmentation_is_the_configs_and_flips_keep_the_class():
    found = task("cifar10", crop=3, cutout=16).pipeline
    assert (found.crop_padding, found.flip, found.cutout) == (3, True, 16)
    assert not task("cifar10", flip=False).pipeline.flip
    assert not task("digits").pipeline.flip
    assert task("digits").pipeline.cutout == 0
