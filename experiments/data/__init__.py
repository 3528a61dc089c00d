"""Image data sets: `load` finds a data set on this machine, or fetches it, and never another one.

`image_data.py` is what comes out of it, `catalog.py` what there is, `lookup.py` the order of
places, and `pipeline.py` the batches.
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
