"""`python -m experiments.data`."""

import subprocess
import sys
from pathlib import Path

import fabricated
import pytest

from experiments.data import load
from experiments.data.__main__ import main


def test_status_of_everything(capsys, data_dir, cifar10_arrays, fashion_arrays, tmp_path, register):
    fabricated.write_cifar10_binary(data_dir / "cifar-10-binary.tar.gz", cifar10_arrays)
    fabricated.write_idx_folder(tmp_path / "system" / "fashion_mnist", fashion_arrays)
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "fashion_small embedded",
        "digits        embedded",
        f"fashion_mnist original files in {tmp_path}/system/fashion_mnist",
        f"cifar10       original files in {data_dir}",
        "cifar100      not on this machine: python -m experiments.data fetch cifar100",
        "tiny_imagenet not on this machine: python -m experiments.data fetch tiny_imagenet",
        "imagenet2012  not on this machine: on a machine with TensorFlow, and the two archives of "
        "image-net.org in DIR: tfds build imagenet2012 --file_format=array_record --manual_dir=DIR "
        "  (155 GB), then copy its folder here; see docs/large_data.md",
        "imagenette    not on this machine: on a machine with TensorFlow: tfds build "
        "imagenette/full-size-v2 --file_format=array_record   (1.5 GB), then copy its folder here; "
        "see docs/large_data.md",
        "numwords      embedded",
        "lohelp        not on this machine: python -m experiments.data fetch lohelp",
        "iwslt14_de_en not on this machine: python -m experiments.data fetch iwslt14_de_en",
        "ted_de_en     not on this machine: python -m experiments.data fetch ted_de_en",
        "files         your own train.de, train.en, valid.de, valid.en, test.de, test.en in "
        f"{data_dir}",
        "pydoc         embedded",
        "pgdoc         not on this machine: python -m experiments.data fetch pgdoc",
        "lm1b          not on this machine: on a machine with internet and TensorFlow: "
        "tfds build lm1b --file_format=array_record   (1709 MB), then copy its folder here",
    ]
    register("cifar10", data_dir)
    load("cifar10")
    (tmp_path / "tfds" / "cifar100" / "3.0.2").mkdir(parents=True)
    (tmp_path / "tfds" / "cifar100" / "3.0.2" / "dataset_info.json").touch()
    main(["status", "cifar10"])
    main(["status", "cifar100"])
    assert capsys.readouterr().out.splitlines() == [
        f"cifar10       cached in {data_dir}/cifar10",
        f"cifar100      prepared TFDS data in {tmp_path}/tfds/cifar100/3.0.2",
    ]


def test_fetch(capsys, tmp_path, cifar10_arrays, register):
    folder = tmp_path / "elsewhere"
    fabricated.write_cifar10_binary(folder / "cifar-10-binary.tar.gz", cifar10_arrays)
    register("cifar10", folder)
    assert main(["fetch", "cifar10", "--dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "cifar10: 20 training and 6 test images of (32, 32, 3), 10 classes" in out
    assert load("cifar10", dir=str(folder)).fingerprint in out


@pytest.mark.parametrize(
    "arguments", [["fetch", "cifar100"], ["status", "nothing"], ["fetch", "x"]]
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("DataUnavailable: ") and "Traceback" not in captured.err


def test_fetch_without_a_name(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fetch"])
    assert "fetch needs a NAME" in capsys.readouterr().err


def test_as_a_command():
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.data", "fetch", "digits"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1437 training and 360 test images" in done.stdout
    # importing the data package costs no heavy library
    code = (
        "import sys, experiments.data; print(sorted({'jax', 'requests', 'PIL', 'tensorflow',"
        "'tensorflow_datasets', 'flax'} & set(sys.modules)))"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert listed.stdout.strip() == "[]"
