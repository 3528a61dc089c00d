"""What config keys mean: comparing configs, also with older ones."""

from __future__ import annotations

import json

from ml_collections import ConfigDict

from configs import base
from experiments import arguments, config_keys


def test_differences_survive_json_and_leave_out_operational_keys():
    config = arguments.settle(base.get_config("workdir=a,data.dir=b"))
    saved = json.loads(json.dumps(config.to_dict()))
    other = arguments.settle(base.get_config("workdir=c,seed=2,depth=32"))
    assert config_keys.differences(saved, config) == {}
    assert config_keys.differences(saved, other) == {"model.depth": (20, 32), "seed": (1, 2)}
    assert config_keys.differences(saved, other, ignore=("seed",))["workdir"] == ("a", "c")
    del saved["momentum"]
    assert config_keys.differences(saved, config) == {"momentum": (None, 0.9)}


def test_keys_added_later_mean_what_was_done_before():
    config = arguments.settle(base.get_config())
    old = config.to_dict()
    for key in config_keys.ADDED_LATER:
        group, _, last = key.rpartition(".")
        del (old[group] if group else old)[last]
        if group and not old[group]:
            del old[group]
    assert config_keys.differences(old, config) == {}
    flat = config_keys.flatten(arguments.settle(ConfigDict(old)))
    assert flat == config_keys.flatten(old) | config_keys.ADDED_LATER
    other = base.get_config("precision=bfloat16,accumulate_steps=2,remat")
    assert config_keys.differences(old, arguments.settle(other)) == {
        "accumulate_steps": (1, 2),
        "precision": ("float32", "bfloat16"),
    }


def test_every_listed_key_exists():
    keys = config_keys.flatten(base.get_config()).keys()
    assert config_keys.ADDED_LATER.keys() <= keys
    assert set(config_keys.OPERATIONAL) <= keys
