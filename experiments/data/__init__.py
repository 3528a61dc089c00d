"""Data sets: each is found on this machine, or fetched, and no other ever takes its place.

`catalog.py` says what there is, `lookup.py` the order of places. `load` and `image_data.py` are for
images and `pipeline.py` makes their batches; sets of images that are too large for memory are in
`large_image_sets.py` and read by `image_stream.py`; `translation_data.py` and `buckets.py` are for
translation, whose texts are read in `translation/`; `text_data.py` (tokens to predict) and
`labelled_text.py` (paragraphs to classify) are for plain text, which is read in `text/`.
"""

from experiments.data.catalog import AnyImageSet, image_set, names
from experiments.data.errors import DataCorrupt, DataUnavailable
from experiments.data.image_data import (
    ImageData,
    Statistics,
    split_validation,
    validation_size,
)
from experiments.data.image_sets import ImageSet
from experiments.data.large_image_sets import LargeImages, LargeImageSet
from experiments.data.lookup import load

__all__ = [
    "AnyImageSet",
    "DataCorrupt",
    "DataUnavailable",
    "ImageData",
    "ImageSet",
    "LargeImageSet",
    "LargeImages",
    "Statistics",
    "image_set",
    "load",
    "names",
    "split_validation",
    "validation_size",
]
