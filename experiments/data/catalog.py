"""The data sets by name, of every kind: `image_sets.py`, `large_image_sets.py`,
`translation_sets.py`, `text_sets.py`.

The name of the user's own text files is `files:GLOB`, for instance `files:notes/*.txt`.
"""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from experiments.data.errors import DataUnavailable
from experiments.data.image_sets import IMAGE_SETS, ImageSet
from experiments.data.large_image_sets import LARGE_IMAGE_SETS, LargeImageSet
from experiments.data.text.user_files import SCHEME
from experiments.data.text_sets import TEXT_SETS, TextSet, of_user_files
from experiments.data.translation_sets import TRANSLATION_SETS, TranslationSet

AnyImageSet = ImageSet | LargeImageSet
AnySet = AnyImageSet | TranslationSet | TextSet
Entry = TypeVar("Entry", bound=AnySet)


def names() -> tuple[str, ...]:
    """The names of all data sets but the user's own text files."""
    return (*IMAGE_SETS, *LARGE_IMAGE_SETS, *TRANSLATION_SETS, *TEXT_SETS)


def image_set(name: str) -> AnyImageSet:
    """The entry of an image set; `DataUnavailable` with near misses if there is none."""
    entries: dict[str, AnyImageSet] = {**IMAGE_SETS, **LARGE_IMAGE_SETS}
    return _find(name, entries)


def translation_set(name: str) -> TranslationSet:
    """The entry of a translation set; `DataUnavailable` with near misses if there is none."""
    return _find(name, TRANSLATION_SETS)


def text_set(name: str) -> TextSet:
    """The entry of a text set; `DataUnavailable` with near misses if there is none."""
    if name.startswith(SCHEME):
        return of_user_files(name)
    return _find(name, TEXT_SETS, f"{SCHEME}GLOB")


def data_set(name: str) -> AnySet:
    """The entry of any data set; `DataUnavailable` with near misses if there is none."""
    if name.startswith(SCHEME):
        return text_set(name)
    entries: dict[str, AnySet] = {
        **IMAGE_SETS,
        **LARGE_IMAGE_SETS,
        **TRANSLATION_SETS,
        **TEXT_SETS,
    }
    return _find(name, entries, f"{SCHEME}GLOB")


def _find(name: str, entries: Mapping[str, Entry], *others: str) -> Entry:
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(name, entries, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = name in names() or name.startswith(SCHEME)
    what = f"data set {name!r} is for another task" if known else f"unknown data set {name!r}"
    raise DataUnavailable(f"{what}{hint}: choose one of {', '.join((*entries, *others))}")
