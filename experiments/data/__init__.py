"""Data sets: `load` and `load_translation` find one on this machine, or fetch it, never another.

`catalog.py` says what there is, `lookup.py` the order of places. `image_data.py` is what comes out
for images and `pipeline.py` the batches; `translation_data.py` and `buckets.py` for translation,
whose texts are read in `translation/`.
"""

from experiments.data.catalog import ImageSet, image_set, names
from experiments.data.errors import DataCorrupt, DataUnavailable
from experiments.data.image_data import ImageData, Statistics, split_validation
from experiments.data.lookup import load

__all__ = [
    "DataCorrupt",
    "DataUnavailable",
    "ImageData",
    "ImageSet",
    "Statistics",
    "image_set",
    "load",
    "names",
    "split_validation",
]
