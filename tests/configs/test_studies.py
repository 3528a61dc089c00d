"""The studies of overcomplete training and of decay: what is asked for, in how many runs."""

from __future__ import annotations

import itertools

import pytest
from planned_runs import settled

from configs import decay_study, distillation, norm_replay
from experiments import arguments
from experiments.describe import describe
from experiments.errors import RunError

pytestmark = pytest.mark.usefixtures("at_the_root")


# Parameters of training: the published counts (CIFAR-10).
@pytest.mark.parametrize(
    ("argument", "depth", "parameters"),
    [
        ("", 32, 1431834),
        ("variant=deep,depth=56", 56, 2594842),
        ("variant=full", 32, 947994),
        ("variant=wide", 32, 2837274),
        ("variant=wide,rank_scale=9", 32, 8505114),
        pytest.param(*("variant=wide,rank_scale=9,depth=56", 56, 15474202), marks=pytest.mark.slow),
        pytest.param(*("variant=wide,data=cifar100", 32, 2837274 + 5850), marks=pytest.mark.slow),
    ],
)
def test_overcomplete_networks_have_the_published_counts(argument, depth, parameters):
    config = distillation.get_config(argument)
    plan = describe(config)
    assert config.merge and config.decay == "frobenius" and config.model.depth == depth
    assert plan.parameters == parameters
    dense = {32: 464154, 56: 853018}[depth] + (5850 if "cifar100" in argument else 0)
    assert plan.dense_parameters == dense
    wide = argument.startswith("variant=wide")
    assert config.init == ("regular" if wide else "spectral")
    # One kernel for each layer is what is applied.
    assert plan.multiply_adds < 1.2 * plan.dense_multiply_adds


def test_an_argument_overrides_what_a_variant_implies():
    assert distillation.get_config("init=spectral,variant=wide").init == "spectral"
    assert distillation.get_config("variant=deep,init=regular,decay=plain").init == "regular"
    with pytest.raises(RunError, match="variant='broad': expected one of deep, wide, full"):
        distillation.get_config("variant=broad")


def test_three_runs_of_a_replay_differ_in_decay_alone():
    configs, runs = settled("norm_replay", "init=regular,seed=2")
    free, recorded, replayed = configs
    assert [c["decay"] for c in configs] == ["none", "frobenius", "none"]
    assert {(c["init"], c["seed"], c["record_norms"]) for c in configs} == {("regular", 2, True)}
    for one, other in itertools.combinations(configs, 2):
        assert {k for k in one if one[k] != other[k]} <= {"decay", "replay"}
    assert [run.name for run in runs] == [
        "norm_replay-decaynone-seed2",
        "norm_replay-decayfrobenius-seed2",
        "norm_replay-decaynone-replay-seed2",
    ]
    assert (free["replay"], recorded["replay"]) == ("", "")
    assert replayed["replay"] == str(runs[1].folder) == "out/norm_replay-decayfrobenius-seed2"
    assert [run.after for run in runs] == [(), (), (runs[1].folder,)]


def test_the_decay_study_is_the_published_grid():
    configs, _ = settled("decay_study")
    grid = itertools.product(["plain", "frobenius"], [5e-6, 1e-5, 5e-5, 5e-4, 1e-3, 5e-3])
    assert [(c["decay"], c["weight_decay"]) for c in configs] == list(grid)
    shared = {key for key in configs[0] if len({str(c[key]) for c in configs}) == 1}
    assert configs[0].keys() - shared == {"decay", "weight_decay"}
    for key, value in {"model.depth": 20, "rank_scale": 0.111, "init": "regular"}.items():
        assert configs[0][key] == value


@pytest.mark.parametrize("study", [decay_study, distillation, norm_replay])
def test_shortened_they_are_204_steps_of_resnet20_on_embedded_data(study):
    config = arguments.settle(study.get_config("runlocal"))
    assert (config.data.name, config.model.depth) == ("fashion_small", 20)
    train_examples = round(5000 * (1 - config.validation))
    arguments.settle(study.get_config("runlocal,protocol=published"))
    assert train_examples // config.batch_size * config.epochs == 204
    assert config.name.endswith("_local")
