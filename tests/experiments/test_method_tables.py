"""What sweeps are reported by: names of methods, the tables of papers, the time to an accuracy."""

from __future__ import annotations

import doctest
import re

import numpy as np
import pytest
from synthetic_runs import write_run

from configs import cifar_resnet, compression, cuttlefish, tensor, translation
from experiments import (
    arguments,
    comparison,
    config_keys,
    machines,
    measures,
    recorded_ranks,
    report,
    setting_names,
)
from experiments.errors import RunError
from experiments.metrics import read_metrics
from experiments.result import Compact
from experiments.time_to_accuracy import first_reached

METHODS = {
    "regular": "init=regular,decay=plain",
    "SI": "init=spectral,decay=plain",
    "FD": "init=regular,decay=frobenius",
    "SI + FD": "init=spectral,decay=frobenius",
    "pruning": "method=prune,decay=plain",
}
PARAMETERS = {0: 464154, 0.1: 46425, 0.05: 23190}


def accuracy_of(model, method, ratio, seed):
    """Made-up accuracies, all different."""
    place = [None, *METHODS].index(method)
    return 0.9 - 0.01 * place - 0.2 * (0.1 - ratio) - 0.1 * (model == "vgg19") + 0.001 * seed


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two quarter-width networks, dense and with five methods at two ratios, two seeds each."""
    root = tmp_path_factory.mktemp("sweep")

    def write(model, method, ratio, seed, words):
        argument = f"model={model},width=0.25,data=fashion_small,ratio={ratio},seed={seed}{words}"
        count = PARAMETERS[ratio] - 3 * (method == "pruning")
        accuracy = accuracy_of(model, method, ratio, seed)
        folder = root / argument.replace("=", "").replace(",", "-")
        write_run(folder, argument, accuracy, count, configs=compression)

    for model in ("vgg19", "resnet32"):
        for seed in (1, 2):
            write(model, None, 0, seed, "")
            for method, words in METHODS.items():
                for ratio in (0.1, 0.05):
                    write(model, method, ratio, seed, f",{words}")
    return root


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    """The report, and the folder it is in."""
    out = tmp_path_factory.mktemp("report")
    return report.report([str(sweep)], out), out


def rows_of(text):
    """The tables' rows as lists of cells, by their first cell; the first of a name counts."""
    found = {}
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(cells[0], cells[1:])
    return found


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("configs", "argument", "method", "size"),
    [
        *((compression, f"{words},ratio=0.05", m, "ratio 0.05") for m, words in METHODS.items()),
        (compression, "ratio=0", "dense", None),
        (compression, "decay=crs,init=regular", "CRS", "ratio 0.1"),
        (compression, "decay=none", "SI, no decay", "ratio 0.1"),
        (compression, "decay=none,init=regular", "regular, no decay", "ratio 0.1"),
        (compression, "init=variance_matched,decay=plain", "variance-matched", "ratio 0.1"),
        (compression, "init=spectral_ones", "SI with ones + FD", "ratio 0.1"),
        (compression, "decay=none,replay=runs/fd", "SI, no decay, norms replayed", "ratio 0.1"),
        (cifar_resnet, "rank_scale=1,variant=deep", "deep, SI + FD", "rank scale 1"),
        (tensor, "kind=tucker,decay=crs", "Tucker, SI + CRS", "rank scale 0.68"),
        (tensor, "kind=tensor_train,rank_scale=0.234,init=regular,decay=plain",
         "tensor train, regular", "rank scale 0.234"),
        (cuttlefish, "method=full", "dense", None),
        (cuttlefish, "method=si_fd", "SI + FD", "rank scale 0.08"),
        (cuttlefish, "method=si_fd,kind=channel", "channel factors, SI + FD", "rank scale 0.08"),
        (cuttlefish, "method=pufferfish", "Pufferfish, norms between factors", None),
        (cuttlefish, "method=cuttlefish", "Cuttlefish + FD", None),
        (cuttlefish, "decay=none", "Cuttlefish, no decay", None),
        (cuttlefish, "model=vgg19", "Cuttlefish, norms between factors", None),
        (cuttlefish, "kind=conv", "spatial factors, Cuttlefish + FD", None),
        (cuttlefish, "model=deit_base,data=digits", "Cuttlefish", None),
        (translation, "rank_scale=0", "dense", None),
        (translation, "rank_scale=0,products.decay=qk_ov", "dense, QK and OV products: FD", None),
        (translation, "products=qk_ov", "SI + FD, QK and OV products: SI + FD", "rank scale 0.5"),
        (translation, "init=regular,decay=plain,products.init=ov", "regular, OV products: SI",
         "rank scale 0.5"),
        (translation, "decay=plain,products.init=qk,products.decay=qk_ov",
         "SI, QK products: SI + FD, OV products: FD", "rank scale 0.5"),
    ],
)  # fmt: skip
def test_methods_and_sizes_are_named_by_the_config(configs, argument, method, size):
    config = config_keys.flatten(arguments.settle(configs.get_config(argument)))
    assert setting_names.method_name(config) == method
    asked = setting_names.size(config)
    assert (setting_names.size_name(asked) if asked else None) == size


@pytest.mark.parametrize(
    ("configs", "argument", "name"),
    [
        (compression, "model=resnet32,width=0.25", "ResNet-32 (64/128/256), width 0.25"),
        (compression, "model=resnet32", "ResNet-32 (64/128/256)"),
        (compression, "model=vgg19,width=0.25", "VGG-19, width 0.25"),
        (cifar_resnet, "depth=110", "ResNet-110"),
        (tensor, "", "WRN-28-10"),
        (tensor, "width=0.4", "WRN-28-4"),
        (cuttlefish, "", "ResNet-18"),
        (cuttlefish, "width=0.25", "ResNet-18, width 0.25"),
        (cuttlefish, "model=resnet50,data=digits", "ResNet-50"),
        (cuttlefish, "model=wide_resnet50,data=digits", "WRN-50-2"),
        (cuttlefish, "model=deit_small,data=digits", "DeiT-small"),
        (cuttlefish, "model=deit_base,data=digits", "DeiT-base"),
        (cuttlefish, "model=resmlp36,data=digits", "ResMLP-36"),
        (translation, "size=small", "Transformer 128, 2 layers"),
        (translation, "size=tiny", "Transformer 64, 1 layer"),
    ],
)
def test_networks_are_named_with_their_width(configs, argument, name):
    config = config_keys.flatten(arguments.settle(configs.get_config(argument)))
    assert setting_names.network_name(config) == name


def test_examples_run():
    for module in (setting_names, comparison, measures, machines, recorded_ranks):
        result = doctest.testmod(module)
        assert result.failed == 0 and result.attempted > 0


# ------------------------------------------------------------------ tables


def test_each_network_has_its_own_section(written):
    text, out = written
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## VGG-19, width 0.25 on fashion_small, test accuracy",
        "## ResNet-32 (64/128/256), width 0.25 on fashion_small, test accuracy",
    ]
    for index in (1, 2):
        assert f"](accuracy_against_parameters_{index}.png)" in text
        assert (out / f"accuracy_against_parameters_{index}.png").exists()


@pytest.mark.parametrize("model", ["vgg19", "resnet32"])
def test_methods_down_sizes_across(written, model):
    text, _ = written
    title = {"vgg19": "VGG-19", "resnet32": "ResNet-32 (64/128/256)"}[model]
    section = next(part for part in text.split("\n## ") if part.startswith(title))
    table = rows_of(section)
    assert table[f"{title}, width 0.25"] == ["dense", "ratio 0.1", "ratio 0.05"]
    assert [name for name in table if name in ("dense", *METHODS)] == ["dense", *METHODS]
    for method in (None, *METHODS):
        expected = []
        for ratio in (0, 0.1, 0.05):
            if (method is None) != (ratio == 0):
                expected.append("–")
                continue
            percent = [100 * accuracy_of(model, method, ratio, seed) for seed in (1, 2)]
            mean = sum(percent) / 2
            deviation = abs(percent[0] - percent[1]) / 2**0.5
            expected.append(f"{mean:.2f} ± {deviation:.2f} (2)")
        assert table[method or "dense"] == expected
    shares = {ratio: f"{count:,}" for ratio, count in PARAMETERS.items()}
    assert [cell.split()[0] for cell in table["parameters"]] == list(shares.values())
    assert table["parameters"][1] == f"46,425 ({46425 / 464154:.2%})"
    nonzero = [cell.split()[0] for cell in table["nonzero parameters, pruning"]]
    assert nonzero == ["–", "46,422", "23,187"]


def test_words_are_explained_and_pruning_has_its_footnote(written, tmp_path):
    text, _ = written
    assert text.count("Neither masks nor the indices") == 2
    assert "the kernels stay dense in memory and time" in text
    for words in ("SI: spectral initialization", "FD: Frobenius decay"):
        assert words in text
    assert "CRS:" not in text
    write_run(tmp_path / "run", "seed=1", 0.5)
    alone = report.report([str(tmp_path)], tmp_path / "out")
    assert "masks" not in alone
    assert rows_of(alone)["SI + FD"] == ["50.00 (1)"]


def test_sizes_of_one_column_may_differ(tmp_path):
    for variant, count in (("flat", 947994), ("deep", 1431834)):
        write_run(tmp_path / variant, f"rank_scale=1,variant={variant}", 0.5, count)
    table = rows_of(report.report([str(tmp_path)], tmp_path / "out"))
    assert table["parameters"] == ["947,994 (204.24%) to 1,431,834 (308.48%)"]
    assert {"SI + FD", "deep, SI + FD"} <= table.keys()


def test_compact_models_stand_beside_what_was_trained(tmp_path):
    write_run(tmp_path / "dense", "rank_scale=0", 0.9, 464154)
    write_run(tmp_path / "low", "rank_scale=0.111", 0.85)
    alone = report.report([str(tmp_path)], tmp_path / "alone")
    assert "compact" not in alone
    for seed, accuracy, merged, apart in ((1, 0.91, 0.9105, 2e-6), (2, 0.92, 0.9195, 5e-7)):
        compact = Compact(464154, merged, 0.3, apart, "compact.safetensors")
        argument = f"rank_scale=3,seed={seed}"
        write_run(tmp_path / f"wide{seed}", argument, accuracy, 2837274, compact=compact)
    text = report.report([str(tmp_path)], tmp_path / "out")
    head, _, *rows = text[text.index("| ResNet-32 | training parameters") :].splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")][1:4] == [
        "training parameters", "compact parameters", "seeds",
    ]  # fmt: skip
    assert rows[: rows.index("")] == [
        "| dense | 464,154 | – | 1 | 90.00 | – | – |",
        "| SI + FD, rank scale 3 | 2,837,274 | 464,154 | 2 | 91.50 | 91.50 | 2.0e-06 |",
    ]


# ------------------------------------------------------------------ time


def test_the_time_to_an_accuracy(sweep, tmp_path):
    """Against a search through the records, with the minutes of the made-up runs."""
    text = report.report([f"{sweep}/*resnet32*"], tmp_path, target=0.8615)
    rows = [line for line in text.splitlines() if " of 2 | " in line]
    assert len(rows) == 11
    assert "Until 86.15 % test accuracy was first measured" in text
    loaded = [comparison.load_run(f) for f in comparison.find_runs([f"{sweep}/*resnet32*"])]
    (settings,) = comparison.settings_by_section(loaded).values()
    for setting, row in zip(settings, rows, strict=True):
        steps = []
        for run in setting.runs:
            lines = [x for x in read_metrics(run.folder) if x.get("test_accuracy", 0) >= 0.8615]
            steps += [lines[0]["step"]] if lines else []
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:3] == [setting.label, f"{setting.parameters:,}", f"{len(steps)} of 2"]
        if not steps:
            assert cells[3:] == ["–"] * 4
            continue
        mean = np.mean(steps)  # Of 39 steps an epoch; 234 took 90 - 10 seconds.
        assert cells[3:6] == [f"{mean / 39:.1f}", f"{mean:,.0f}", f"{128 * mean:,.0f}"]
        assert float(cells[6]) == pytest.approx(80 / 60 * mean / 234, abs=0.051)
    assert {row.split("|")[3].strip() for row in rows} == {"0 of 2", "1 of 2", "2 of 2"}


def test_the_target_is_a_share_of_the_dense_accuracy(written, sweep, tmp_path):
    text, _ = written
    dense = np.mean([accuracy_of("vgg19", None, 0, seed) for seed in (1, 2)])
    assert f"Until {95 * dense:.2f} % test accuracy (95% of the dense network's mean" in text
    alone = report.report([f"{sweep}/*resnet32*ratio0.1*"], tmp_path / "no_dense")
    assert "Until" not in alone
    with pytest.raises(RunError, match=r"target 90: expected a fraction, such as 0\.9 for 90 %"):
        report.report([str(sweep)], tmp_path / "out", target=90)


def test_without_a_record_there_is_no_time(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", f"rank_scale=0,seed={seed}", 0.5)
    (tmp_path / "2" / "metrics.jsonl").unlink()
    text = report.report([str(tmp_path)], tmp_path / "out")
    assert re.search(r"\| dense \| 107,370 \| 1 of 1 \|", text)
    (tmp_path / "1" / "metrics.jsonl").unlink()
    assert "Until" not in report.report([str(tmp_path)], tmp_path / "out")


def test_what_a_run_never_measured_it_never_reached(tmp_path):
    """Of lines within an epoch, too, which have no accuracy."""
    run = comparison.load_run(write_run(tmp_path / "run", "seed=1", 0.5, diagnostics="steps"))
    lines = read_metrics(run.folder)
    assert first_reached(run, lines, "test", 0.6) is None
    assert first_reached(run, lines, "validation", 0.1) is None
    assert first_reached(run, lines, "test", 0.5 - 1e-12).steps == 6 * 39
