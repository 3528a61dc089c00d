"""Typed config arguments, and settling."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from configs import base, pretraining, translation
from experiments import accepted_values, arguments, config_keys
from experiments.errors import RunError


def test_an_argument_is_a_path_a_last_part_or_a_group():
    config = base.get_config("model.depth=56, width=4,data=digits,data.dir=/d,model=resnet,crop=2")
    assert (config.model.depth, config.model.width, config.model.name) == (56, 4, "resnet")
    assert (config.data.name, config.data.dir, config.augment.crop) == ("digits", "/d", 2)
    assert config.name == "base"  # the key at the top, although groups have a name too


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("rank_scale=1", "rank_scale", 1.0),
        ("rank_scale=.07177734375", "rank_scale", 0.07177734375),
        ("weight_decay=5e-4", "weight_decay", 5e-4),
        ("epochs=7", "epochs", 7),
        ("flip=false", "augment.flip", False),
        ("flip", "augment.flip", True),
        ("validation=0", "validation", 0.0),
        ("decay=crs", "decay", "crs"),
        ("", "seed", 1),
    ],
)
def test_values_take_the_type_of_the_default(argument, key, value):
    found = config_keys.flatten(base.get_config(argument))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("initt=s", "unknown config argument 'initt' (did you mean 'init'?); known are accum"),
        ("qqqq=1", "unknown config argument 'qqqq'; known are"),
        ("decay=frob", "decay='frob': expected one of none, plain, frobenius, crs"),
        ("protocol=our", "protocol='our': expected one of ours, published (did you mean 'ours'?)"),
        ("epochs=3.5", "config argument epochs='3.5': expected a whole number"),
        ("rank_scale=low", "config argument rank_scale='low': expected a number"),
        ("rank_scale=nan", "config argument rank_scale='nan': expected a number"),
        ("rank_scale=-1", "rank_scale=-1.0: expected 0 (the dense network) or a positive number"),
        ("flip=maybe", "config argument augment.flip='maybe': expected True or False"),
        ("validation=1", "validation=1.0: expected a fraction of the training set"),
        ("seed", "config argument 'seed' has no value: write seed=VALUE"),
        ("seed=1,seed=2", "config argument 'seed' is given twice"),
        ("depth=20,model.depth=32", "config argument 'model.depth' is given twice"),
        ("milestones=0.5", "config argument 'milestones' takes a tuple: write --config.mil"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_clear_line(argument, message):
    with pytest.raises(RunError) as error:
        base.get_config(argument)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_last_part_that_two_groups_share_is_ambiguous():
    config = ConfigDict({"a": {"size": 1}, "b": {"size": 2}})
    with pytest.raises(RunError, match=r"'size' is ambiguous: write one of a.size, b.size"):
        arguments.apply(config, "size=3")
    assert arguments.apply(config, "b.size=3").b.size == 3


def test_presets_come_before_the_other_arguments():
    def small(config):
        config.epochs = 1
        config.seed = 9

    config = arguments.apply(base.get_config(), "epochs=5,small", presets={"small": small})
    assert (config.epochs, config.seed) == (5, 9)
    with pytest.raises(RunError, match="small='perhaps': expected True or False"):
        arguments.apply(base.get_config(), "small=perhaps", presets={"small": small})


def test_settle_fills_in_what_the_protocol_says_and_is_idempotent():
    config = base.get_config()
    settled = arguments.settle(config)
    assert (settled.validation, settled.warmup_epochs) == (0.1, 0)
    assert config.validation is None  # the argument is left alone
    assert arguments.settle(settled) == settled
    assert arguments.settle(base.get_config("protocol=published")).validation == 0
    assert arguments.settle(base.get_config("protocol=published,validation=0")).validation == 0


def test_settle_checks_what_flags_have_set():
    config = base.get_config()
    config.init = "sepctral"
    with pytest.raises(RunError, match="init='sepctral': expected one of"):
        arguments.settle(config)
    config = base.get_config()
    config.milestones = (0.75, 0.5)
    with pytest.raises(RunError, match=r"milestones=.*ascending fractions"):
        arguments.settle(config)
    with pytest.raises(RunError, match=r"validation=0.1 with protocol=published"):
        arguments.settle(base.get_config("protocol=published,validation=0.1"))
    with pytest.raises(RunError, match="variant=deep with rank_scale=0"):
        arguments.settle(base.get_config("variant=deep"))


def test_every_key_with_a_choice_or_a_bound_exists():
    configs = base.get_config(), translation.get_config(), pretraining.get_config()
    keys = {key for config in configs for key in config_keys.flatten(config)}
    assert set(accepted_values.CHOICES) <= keys
    assert set(accepted_values.BOUNDS) <= keys
