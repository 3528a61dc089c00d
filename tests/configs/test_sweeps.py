"""The sweeps: how many runs, which, and that each is a valid experiment of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from planned_runs import settled

ROOT = Path(__file__).parents[2]
SWEEPS = {
    "cifar_resnet": 516, "compression": 234, "tensor": 111, "compression_small": 44,
    "translation": 858, "rank_selection_small": 10,
}  # fmt: skip
# Those that do not have all of their settings with every seed; each has a test of its own.
UNEVEN = {"translation_small", "pretraining_small"}

pytestmark = pytest.mark.usefixtures("at_the_root")


def without_seed(configs):
    """The settings; a run that replays or starts from another one does so with that of its seed."""
    found = set()
    for config in configs:
        setting = dict(config)
        for key in ("replay", "start"):
            assert not config[key] or f"-seed{config['seed']}-" in config[key]
            setting[key] = config[key].replace(f"seed{config['seed']}", "")
        found.add(tuple(sorted((k, v) for k, v in setting.items() if k != "seed")))
    return found


def differing_keys(one, other):
    return {key for key in one if one[key] != other[key]}


def test_every_sweep_is_counted_here():
    files = (ROOT / "configs" / "sweeps").glob("*.py")
    assert {path.stem for path in files} - {"__init__"} == SWEEPS.keys() | UNEVEN


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if count > 500 else name
        for name, count in SWEEPS.items()
    ],
)
def test_counts(name):
    configs, _ = settled(name)
    seeds = (1, 2) if name.endswith("_small") else (1, 2, 3)
    assert len(configs) == SWEEPS[name]
    assert Counter(c["seed"] for c in configs) == dict.fromkeys(seeds, SWEEPS[name] // len(seeds))
    assert len(without_seed(configs)) == SWEEPS[name] // len(seeds)
    assert [c["seed"] for c in configs] == sorted(c["seed"] for c in configs)
    # In translation it is the recipe that is published.
    protocol = "ours" if name.endswith("_small") or name == "translation" else "published"
    assert {c["protocol"] for c in configs} == {protocol}


def test_cifar_resnet_is_the_published_grid():
    """168 settings: 166 of their own, and two triples of runs."""
    configs = [c for c in settled("cifar_resnet")[0] if c["seed"] == 1]
    names = ("data.name", "model.depth", "rank_scale", "variant", "init", "decay", "weight_decay")
    found = {tuple(c[name] for name in names) for c in configs if c["rank_scale"]}
    expected = set()
    for data, depth, decay in itertools.product(
        ("cifar10", "cifar100"), (32, 56, 110), ("plain", "frobenius")
    ):
        for scale, variant, init in itertools.product(
            (0.037, 0.111, 0.333, 1.0, 3.0, 9.0), ("flat", "deep"), ("regular", "spectral")
        ):
            if (variant == "flat" or scale == 1) and (init == "regular" or scale <= 1):
                expected.add((data, depth, scale, variant, init, decay, 1e-4))
    small = ("cifar10", 20, 0.111, "flat")
    for coefficient in (5e-6, 1e-5, 5e-5, 5e-4, 1e-3, 5e-3):
        for decay in ("plain", "frobenius"):
            expected.add((*small, "regular", decay, coefficient))
    ordinary = len(expected) + 2 * 5  # The dense networks.
    assert ordinary + 2 == 168
    for init in ("regular", "spectral"):
        expected |= {(*small, init, decay, 1e-4) for decay in ("none", "frobenius")}
    assert found == expected
    assert len(configs) == ordinary + 2 * 3
    for init in ("regular", "spectral"):
        triple = [c for c in configs if c["init"] == init and (c["record_norms"] or c["replay"])]
        recorded, replayed = sorted(triple, key=lambda c: bool(c["replay"]))
        assert (recorded["decay"], replayed["decay"]) == ("frobenius", "none")
        assert replayed["replay"].endswith(f"-init{init}-decayfrobenius-record_normsTrue")
        assert differing_keys(recorded, replayed) == {"decay", "record_norms", "replay"}
    dense = [(c["data.name"], c["model.depth"]) for c in configs if not c["rank_scale"]]
    assert sorted(dense) == sorted(
        itertools.product(("cifar10", "cifar100"), (20, 32, 44, 56, 110))
    )


def test_compression_is_the_published_grid():
    configs = [c for c in settled("compression")[0] if c["seed"] == 1]
    networks = {("projection_resnet", 32, 1e-4): "resnet", ("vgg", 19, 2e-4): "vgg"}
    found = Counter()
    for c in configs:
        network = networks[c["model.name"], c["model.depth"], c["weight_decay"]]
        method = (c["init"], c["decay"]) if c["ratio"] else "dense"
        found[network, c["data.name"], c["ratio"], method] += 1
    expected = Counter()
    for network, data in itertools.product(
        ("resnet", "vgg"), ("cifar10", "cifar100", "tiny_imagenet")
    ):
        easier = (network, data) == ("resnet", "tiny_imagenet")
        expected[network, data, 0.0, "dense"] += 1
        for ratio in (0.05, 0.1, 0.15) if easier else (0.02, 0.05, 0.1):
            for init in ("regular", "spectral"):
                for decay in ("plain", "frobenius"):
                    expected[network, data, ratio, (init, decay)] += 1
    assert found == expected
    assert len(expected) == 78


def test_tensor_is_the_published_grid():
    configs = [c for c in settled("tensor")[0] if c["seed"] == 1]
    sizes = {
        ("conv", 0.01667, 0.0), ("conv", 0.06667, 0.0), ("tensor_train", 0.0, 0.234),
        ("tensor_train", 0.0, 0.705), ("tucker", 0.0, 0.211), ("tucker", 0.0, 0.68),
    }  # fmt: skip
    found = Counter(
        (c["kind"], c["ratio"], c["rank_scale"], c["init"], c["decay"])
        for c in configs
        if c["ratio"] or c["rank_scale"]
    )
    methods = itertools.product(("regular", "spectral"), ("plain", "crs", "frobenius"))
    expected = {(*size, *method) for size, method in itertools.product(sizes, methods)}
    assert found == dict.fromkeys(expected, 1) and len(found) == 36
    assert sum(not c["ratio"] and not c["rank_scale"] for c in configs) == 1
    assert {(c["model.name"], c["model.depth"], c["model.width"]) for c in configs} == {
        ("wide_resnet", 28, 1)
    }


def test_compression_small_is_six_methods_on_quarter_width_twins():
    configs, _ = settled("compression_small")
    for c in configs:
        assert (c["data.name"], c["model.width"], c["validation"]) == ("fashion_small", 0.25, 0)
        assert c["epochs"] * (5000 // c["batch_size"]) == 390
        assert c["decay"] == "plain" or c["method"] == "factorize"
    methods = Counter(
        (c["method"], c["init"], c["decay"])
        if c["ratio"] and c["method"] == "factorize"
        else (c["method"] if c["ratio"] else "dense")
        for c in configs
    )
    factorized = itertools.product(("factorize",), ("regular", "spectral"), ("plain", "frobenius"))
    # Of each: two models, two seeds, and two ratios, where there is one.
    assert methods == {"dense": 4, "prune": 8} | dict.fromkeys(factorized, 8)
    assert {c["ratio"] for c in configs} == {0, 0.05, 0.1}
    assert {c["model.name"] for c in configs} == {"vgg", "projection_resnet"}


def test_translation_is_the_published_grid():
    """286 settings, from the flags of the published scripts."""
    configs = [c for c in settled("translation")[0] if c["seed"] == 1]
    names = ("rank_scale", "init", "decay", "weight_decay", "products.init", "products.decay")
    found = Counter()
    for c in configs:
        frobenius = c["products.decay"] != "none" or (c["rank_scale"] and c["decay"] == "frobenius")
        coefficient = c["frobenius_decay"] if frobenius else 0.0
        # Of what is not factorized, neither is anything said.
        said = tuple(c[name] for name in names) if c["rank_scale"] else (
            0.0, None, None, *(c[name] for name in names[3:])
        )  # fmt: skip
        found[(*said, coefficient)] += 1
    expected = Counter()
    for scale, value, ov, qk, linear, spectral, spectral_products in itertools.product(
        (0.0, 0.25, 0.5), (0.0, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3), *[(False, True)] * 5
    ):
        if (
            (value > 1e-4 and (scale or spectral_products))
            or ((ov or linear) and not value)
            or (qk and not ov)
            or ((linear or spectral) and not scale)
        ):
            continue
        any_frobenius = ov or linear
        decay = "frobenius" if linear else "none" if ov else "plain"
        expected[
            scale,
            ("spectral" if spectral else "regular") if scale else None,
            decay if scale else None,
            0.0 if any_frobenius else value,
            "qk_ov" if spectral_products else "none",
            "qk_ov" if qk else "ov" if ov else "none",
            value if any_frobenius else 0.0,
        ] += 1
    assert found == expected
    assert len(expected) == 286 and set(expected.values()) == {1}
    assert {(c["decay_position"], c["momentum"], c["clip_norm"]) for c in configs} == {
        ("published", 0.99, 0.1)
    }


def test_translation_small_is_ten_settings_of_one_budget_and_six_of_them_with_another_seed():
    configs, _ = settled("translation_small")
    first, second = ([c for c in configs if c["seed"] == seed] for seed in (1, 2))
    assert (len(first), len(second)) == (10, 6)
    assert len(without_seed(first)) == 10 and len(without_seed(second)) == 6
    assert without_seed(second) < without_seed(first)
    assert {(c["steps"], c["batch_size"], c["data.name"]) for c in configs} == {
        (3000, 1500, "lohelp")
    }
    settings = {
        (c["init"], c["decay"], c["products.init"], c["products.decay"])
        for c in configs
        if c["rank_scale"]
    }
    assert settings == {
        *((i, d, "none", "none") for i in ("regular", "spectral") for d in ("plain", "frobenius")),
        ("spectral", "frobenius", "qk_ov", "qk_ov"),
    }
    coefficients = Counter(
        c["frobenius_decay"] for c in configs if c["decay"] == "frobenius" and c["rank_scale"]
    )
    assert coefficients == {0.0: 1, 1e-2: 3, 1e-3: 6}  # 0 is that of plain decay.
    assert {c["rank_scale"] for c in configs} == {0.0, 0.25}
    assert {c["model.head_scale"] for c in configs} == {1.0, 0.25}


def test_pretraining_small_fine_tunes_every_network_as_it_was_pretrained():
    configs, runs = settled("pretraining_small")
    keys = ("model.head_scale", "products.init", "products.decay", "frobenius_decay")
    methods = [
        (1.0, "none", "none", 0.0),
        (0.5, "none", "none", 0.0),
        (0.5, "qk_ov", "none", 0.0),
        (0.5, "qk_ov", "qk_ov", 0.1),
        (0.5, "qk_ov", "qk_ov", 1.0),
    ]
    for seed, all_of in ((1, methods), (2, methods[:4])):
        found = Counter(
            (c["task"], bool(c["start"]), tuple(c[key] for key in keys))
            for c in configs
            if c["seed"] == seed
        )
        assert found == {
            **dict.fromkeys((("masked_language_model", False, m) for m in all_of), 1),
            **dict.fromkeys((("text_classification", True, m) for m in all_of), 1),
            **dict.fromkeys((("text_classification", False, m) for m in methods[:2]), 1),
        }
    folders = {str(run.folder): c for run, c in zip(runs, configs, strict=True)}
    same = ("seed", "vocabulary_size", *keys)
    for config in configs:
        if config["start"]:
            start = folders[config["start"]]
            assert [start[key] for key in same] == [config[key] for key in same]
