"""ResNet-50 on ImageNet: the recipe of arXiv 1706.02677, section 5.1, and what is counted of it."""

from __future__ import annotations

import numpy as np
import pytest

from configs import cuttlefish, imagenet_resnet50
from experiments import arguments, recipe, tasks
from experiments.describe import describe

IMAGES = 1_281_167


def settled(argument: str = ""):
    return arguments.settle(imagenet_resnet50.get_config(argument))


@pytest.mark.parametrize(
    ("argument", "size", "peak"),
    [("", 256, 0.1), ("batch=1024", 1024, 0.4), ("batch=8192", 8192, 3.2)],
)
def test_the_learning_rate_of_every_epoch(argument, size, peak):
    """It rises from 0.1 to 0.1 for each 256 images within five epochs, and falls after 30, 60 and
    80 to a tenth."""
    config, steps = settled(argument), IMAGES // size
    rate = recipe.learning_rate(config, steps)
    found = [float(rate(epoch * steps)) for epoch in range(90)]
    warming = [0.1 + (peak - 0.1) * epoch / 5 for epoch in range(5)]
    expected = [*warming, *25 * [peak], *30 * [peak / 10], *20 * [peak / 100], *10 * [peak / 1000]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert config.batch_size == size and config.epochs == 90


def test_the_rest_of_the_recipe():
    config = settled()
    assert (config.momentum, config.nesterov, config.weight_decay) == (0.9, False, 1e-4)
    assert not config.decay_vectors
    assert (config.augment.crop, config.augment.flip, config.augment.cutout) == (0, True, 0)
    assert config.validation == 0 and config.data.name == "imagenet2012"


def test_the_network_is_planned_without_its_data():
    """25.56 million parameters and 4.09 thousand million multiply-adds, as torchvision counts."""
    found = describe(settled("rank_scale=0.25"))
    assert found.dense_parameters == 25_557_032
    assert round(found.dense_multiply_adds / 1e9, 2) == 4.09
    assert found.parameters < found.dense_parameters
    assert found.multiply_adds < found.dense_multiply_adds


@pytest.mark.parametrize(
    "model", ["resnet50", "wide_resnet50", "deit_small", "deit_base", "resmlp36"]
)
def test_networks_of_cuttlefish_for_imagenet_have_it(model):
    config = arguments.settle(cuttlefish.get_config(f"model={model}"))
    assert config.data.name == "imagenet2012" and config.augment.crop == 0
    assert tasks.network(config).example(1).shape == (1, 224, 224, 3)
    if "resnet" in model:
        recipe = (config.epochs, config.batch_size, config.learning_rate, config.warmup_epochs)
        assert recipe == (90, 256, 0.1, 0)
        assert [int(share * 90) for share in config.milestones] == [30, 60, 80]
    local = cuttlefish.get_config(f"model={model},runlocal")
    assert local.data.name == "digits"


def test_runlocal_needs_no_download():
    config = settled("runlocal,rank_scale=0.5")
    assert (config.data.name, config.model.name, config.model.width) == (
        "digits",
        "resnet50",
        0.125,
    )
