"""The config that starts from a finished run: what it takes from there, and what it refuses."""

from __future__ import annotations

import json

import pytest

from configs import base, cifar_resnet, compress_trained
from experiments import arguments, config_keys
from experiments.errors import RunError

ARGUMENT = "depth=20,seed=3,data=cifar100,validation=0.2,epochs=60,learning_rate=0.4,rank_scale=0"


@pytest.fixture
def run(tmp_path):
    """What is read of a finished run's folder, without the run."""
    folder = tmp_path / "run"
    folder.mkdir()
    trained = arguments.settle(cifar_resnet.get_config(ARGUMENT + ",batch_size=64,crop=2"))
    contents = {
        "config.json": trained.to_dict(),
        "data.json": {"name": "cifar100", "origin": "tfds", "fingerprint": "f" * 64},
        "result.json": {"final": {"step": 9, "accuracy": 0.7}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def settled(run, argument=""):
    return arguments.settle(compress_trained.get_config(f"start={run},{argument}"))


def test_what_comes_from_the_run(run):
    config = settled(run)
    assert (config.model.name, config.model.depth, config.data.name) == ("resnet", 20, "cifar100")
    assert (config.seed, config.validation, config.protocol) == (3, 0.2, "ours")
    assert (config.batch_size, config.augment.crop) == (64, 2)
    assert (config.start, config.name) == (str(run), "compress_trained")
    assert config_keys.flatten(base.get_config()).keys() == config_keys.flatten(config).keys()


def test_the_recipe_of_its_own(run):
    config = settled(run)
    assert (config.epochs, config.learning_rate) == (6, pytest.approx(0.04))
    assert (config.milestones, config.warmup_epochs) == ((0.5,), 0)
    assert (config.init, config.decay) == ("spectral", "frobenius")


def test_a_short_run_is_followed_by_two_epochs(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"epochs": 3}))
    assert settled(run).epochs == 2


def test_arguments_override(run):
    config = settled(run, "epochs=9,learning_rate=0.5,seed=4,depth=32,weight_decay=0.1")
    assert (config.epochs, config.learning_rate, config.seed) == (9, 0.5, 4)
    assert (config.model.depth, config.weight_decay) == (32, 0.1)


@pytest.mark.parametrize(
    ("argument", "sizes"),
    [
        ("", (0, 0, 0.9)),
        ("energy=0.5", (0, 0, 0.5)),
        ("energy=0", (0, 0, 0)),
        ("ratio=0.1", (0, 0.1, 0)),
        ("rank_scale=0.111", (0.111, 0, 0)),
        ("method=prune,ratio=0.1", (0, 0.1, 0)),
    ],
)
def test_one_size(argument, sizes, run):
    config = settled(run, argument)
    assert tuple(config[size] for size in config_keys.SIZES) == sizes


def test_an_older_config_is_read(run):
    """Without the keys that came later, and with a width that was a whole number."""
    config = json.loads((run / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in config_keys.ADDED_LATER}
    old["model"]["width"] = 1
    (run / "config.json").write_text(json.dumps(old))
    config = settled(run)
    assert (config.kind, config.model.width, type(config.model.width)) == ("conv", 1.0, float)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "result.json").unlink(), "run is not a finished run: it has no result"),
        (lambda run: (run / "config.json").unlink(), "cannot read .*config.json"),
        (lambda run: (run / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda run: (run / "config.json").write_text("{}"), "damaged"),
        (lambda run: (run / "data.json").write_text('{"name": "x"}'), "damaged"),
        (lambda run: (run / "result.json").write_text('{"final": null}'), "damaged"),
    ],
)
def test_runs_that_cannot_be_started_from(damage, message, run):
    damage(run)
    with pytest.raises(RunError, match=message) as caught:
        compress_trained.get_config(f"start={run}")
    assert "\n" not in str(caught.value)


def test_mistakes(run, tmp_path):
    with pytest.raises(RunError, match=r"name the finished run .*:start=RUN"):
        compress_trained.get_config()
    with pytest.raises(RunError, match="nowhere is not a finished run: it does not exist"):
        compress_trained.get_config(f"start={tmp_path / 'nowhere'}")
    with pytest.raises(RunError, match=r"result\.json is not a finished run: it is a file"):
        compress_trained.get_config(f"start={run / 'result.json'}")
    with pytest.raises(RunError, match="unknown config argument 'rato'"):
        compress_trained.get_config(f"start={run},rato=0.1")
    with pytest.raises(RunError, match=r"energy=0\.9: give the ratio to prune to"):
        settled(run, "method=prune")
    with pytest.raises(RunError, match=r"ratio=0\.1 and energy=0\.9: one says how large"):
        settled(run, "ratio=0.1,energy=0.9")
