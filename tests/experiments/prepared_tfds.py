"""Folders that TFDS itself prepares, without TensorFlow."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def prepare(
    folder: Path,
    name: str,
    version: str,
    features: Callable[[Any], Mapping[str, Any]],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """The folder of a data set of these examples, which `features` gets a type of TFDS's each."""
    import tensorflow_datasets as tfds

    def info(self: Any) -> Any:
        types = tfds.features.FeaturesDict(features(tfds.features))
        return tfds.core.DatasetInfo(builder=self, features=types)

    builder_class = type(
        "Fabricated",
        (tfds.core.GeneratorBasedBuilder,),
        {
            "name": name,
            "VERSION": tfds.core.Version(version),
            "_info": info,
            "_generate_examples": lambda self, split: enumerate(splits[split]),
            "_split_generators": lambda self, _: {
                split: self._generate_examples(split) for split in splits
            },
            "__module__": __name__,
        },
        skip_registration=True,
    )
    builder_class(data_dir=str(folder), file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return folder / name / version
