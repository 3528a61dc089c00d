"""The config files, as the command line sees them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs import (
    base,
    cifar_resnet,
    compression,
    cuttlefish,
    imagenet_resnet50,
    quickstart,
    tensor,
    translation,
)
from experiments import arguments, config_keys
from experiments.errors import RunError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_flag(monkeypatch):
    """What a command sees that defines --config and is started from the repository's root."""

    def parse(name, *overrides):
        argv = ["command", f"--config={ROOT / 'configs' / name}", *overrides]
        monkeypatch.setattr("sys.argv", argv)  # config_flags looks for its overrides there
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return values.config

    return parse


@pytest.mark.parametrize(
    "module",
    [
        base,
        cifar_resnet,
        compression,
        cuttlefish,
        imagenet_resnet50,
        quickstart,
        tensor,
        translation,
    ],
)
def test_every_key_has_a_type_and_every_config_settles(module):
    config = module.get_config()
    for key in config_keys.flatten(config):
        group, _, last = key.rpartition(".")
        owner = config[group] if group else config
        assert owner.get_type(last) in (int, float, bool, str, tuple), key
    settled = arguments.settle(config)
    # The device decides on this one, when the run starts.
    still_open = [key for key, value in config_keys.flatten(settled).items() if value is None]
    assert still_open == ["steps_per_dispatch"]
    keys, of_base = (
        config_keys.flatten(config).keys(),
        config_keys.flatten(base.get_config()).keys(),
    )
    if config.task == "classification":
        # What a model's group has are the fields of that model.
        assert {k for k in keys ^ of_base if not k.startswith("model.")} == set()
    else:  # Without what is for images, and with what is for text.
        images = {"validation", "eval_batch_size", "expected_accuracy"}
        images |= {"model.depth", "model.width"}
        assert {key for key in of_base - keys if not key.startswith("augment.")} == images
        text = {"vocabulary_size", "max_length", "label_smoothing"}
        assert {key for key in keys - of_base if "." not in key} == text


def test_defaults_are_the_published_recipe():
    config = arguments.settle(cifar_resnet.get_config("protocol=published"))
    recipe = (config.epochs, config.batch_size, config.learning_rate, config.momentum)
    assert recipe == (200, 128, 0.1, 0.9)
    assert (config.weight_decay, config.milestones, config.milestone_factor) == (
        1e-4, (0.5, 0.75), 0.1,
    )  # fmt: skip
    assert (config.augment.crop, config.augment.flip) == (4, True)
    assert config.warmup_learning_rate == 0.01
    assert config.validation == 0


@pytest.mark.parametrize(("depth", "epochs"), [(20, 0), (32, 0), (44, 0), (56, 1), (110, 1)])
def test_the_deepest_networks_warm_up(depth, epochs):
    config = arguments.settle(cifar_resnet.get_config(f"depth={depth}"))
    assert config.warmup_epochs == epochs
    explicit = arguments.settle(cifar_resnet.get_config(f"depth={depth},warmup_epochs=3"))
    assert explicit.warmup_epochs == 3


def test_quickstart_is_234_steps():
    config = arguments.settle(quickstart.get_config())
    assert config.validation == 0
    assert config.epochs * (5000 // config.batch_size) == 234


def test_runlocal_is_small_and_explicit_arguments_win():
    config = cifar_resnet.get_config("epochs=3,runlocal=True")
    assert (config.data.name, config.model.depth, config.epochs) == ("digits", 8, 3)
    assert cifar_resnet.get_config("runlocal=False") == cifar_resnet.get_config()


def test_flags_override_every_kind_of_key(config_flag):
    config = config_flag(
        "cifar_resnet.py:depth=20,data=digits",
        "--config.epochs=3",
        "--config.validation=0.2",
        "--config.warmup_epochs=2",
        "--config.milestones=(0.3, 0.6, 0.9)",
        "--config.data.download=never",
        "--config.augment.flip=False",
        "--config.weight_decay=5e-4",
        "--config.profile_steps=10,20",
    )
    settled = arguments.settle(config)
    assert (settled.model.depth, settled.data.name, settled.epochs) == (20, "digits", 3)
    assert (settled.validation, settled.warmup_epochs) == (0.2, 2)
    assert settled.milestones == (0.3, 0.6, 0.9)
    assert (settled.data.download, settled.augment.flip) == ("never", False)
    assert settled.weight_decay == 5e-4
    assert settled.profile_steps == (10, 20)
    other_spelling = config_flag("base.py", "--config.profile_steps=(10, 20)")
    assert other_spelling.profile_steps == (10, 20)


def test_an_unknown_argument_reaches_the_command_as_a_run_error(config_flag):
    with pytest.raises(RunError, match=r"unknown config argument 'dept'.*'depth'"):
        config_flag("cifar_resnet.py:dept=20")


def test_configs_import_nothing_but_ml_collections_and_the_vocabulary():
    for path in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in ("ml_collections", "configs", "experiments")
                if node.module == "experiments":
                    assert {alias.name for alias in node.names} <= {"arguments", "config_keys"}
            assert not isinstance(node, ast.Import), path


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        ("resnet18", "full", ("factorize", 0.0, "channel", "plain", False)),
        ("resnet18", "pufferfish", ("pufferfish", 0.0, "channel", "plain", True)),
        ("resnet18", "cuttlefish", ("cuttlefish", 0.0, "channel", "frobenius", False)),
        ("resnet18", "si_fd", ("factorize", 0.08, "conv", "frobenius", False)),
        ("vgg19", "pufferfish", ("pufferfish", 0.0, "channel", "plain", False)),
        ("vgg19", "cuttlefish", ("cuttlefish", 0.0, "channel", "plain", True)),
        ("resnet50", "cuttlefish", ("cuttlefish", 0.0, "channel", "plain", True)),
        ("wide_resnet50", "pufferfish", ("pufferfish", 0.0, "channel", "plain", False)),
        ("deit_base", "cuttlefish", ("cuttlefish", 0.0, "linear", "plain", False)),
        ("resmlp36", "cuttlefish", ("cuttlefish", 0.0, "linear", "plain", False)),
    ],
)
def test_what_networks_have_is_as_published(model, method, expected):
    """In whichever order both are said; what selects is as the preset of the data says."""
    for argument in (f"model={model},method={method}", f"method={method},model={model}"):
        config = arguments.settle(cuttlefish.get_config(argument))
        found = [config[k] for k in ("method", "rank_scale", "kind", "decay", "factor_norm")]
        assert tuple(found) == expected
    least = {"cifar": 0.0, "imagenet": 0.2, "vit": 0.5}
    assert config.selection.minimum_fraction == least[config.selection.preset]
