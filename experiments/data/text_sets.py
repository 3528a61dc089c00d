"""The sets of plain text: where the original files of each are.

Their known fingerprints are of the versions that the committed results are of.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

from experiments.data.original import (
    Arrays,
    AtHand,
    DataSet,
    Original,
    OriginalFile,
    Prepared,
    Release,
)
from experiments.data.raw_text import SPLITS
from experiments.data.text import lm1b, pgdoc, pydoc, user_files
from experiments.data.text.plain_text import PlainText
from experiments.errors import RunError


@dataclasses.dataclass(frozen=True)
class TextSet(DataSet[PlainText]):
    """Documents of plain text.

    Attributes:
      find_labels: what labels its documents have, found without reading them.
    """

    array_names: ClassVar[tuple[str, ...]] = SPLITS

    find_labels: Callable[[], tuple[str, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        """What its documents can be classified as; `RunError` if they have no labels."""
        labels = self.find_labels()
        if not labels:
            raise RunError(
                f"data set {self.name!r} has no labels, so there is nothing to classify; pydoc and "
                "pgdoc have some, and files:GLOB if the files are in several folders"
            )
        return labels

    def build(self, origin: str, arrays: Arrays) -> PlainText:
        return PlainText.from_arrays(self.name, origin, *arrays)


_PGDOC = Original(
    releases=(
        Release(
            (
                OriginalFile(
                    f"{pgdoc.PACKAGE}_*.deb", f"apt:{pgdoc.PACKAGE}", 2_124_920, checksum=None
                ),
            ),
            pgdoc.read,
        ),
    ),
    subfolder="pgdoc",
    system_folder=None,
    install=f"mkdir -p {{folder}} && cd {{folder}} && apt-get download {pgdoc.PACKAGE}",
    prepared=None,
    instead=("pydoc",),
)

_LM1B = Original(
    releases=(),
    subfolder="",
    system_folder=None,
    install=(
        "on a machine with internet and TensorFlow: tfds build lm1b --file_format=array_record"
        "   (1709 MB), then copy its folder here"
    ),
    prepared=Prepared(
        lm1b.NAME, lm1b.read_prepared, f"the first {lm1b.TRAINING_SENTENCES} training sentences"
    ),
    instead=("pydoc",),
)

TEXT_SETS: dict[str, TextSet] = {
    name: TextSet(name, provider, fingerprint, find_labels)
    for name, provider, fingerprint, find_labels in (
        (
            "pydoc",
            AtHand.embedded(pydoc.read),
            "ce609ec5c0b65c596a9bc5442b3c4752868002b008df977b6b2b5a7f96027c4d",
            lambda: pydoc.LABELS,
        ),
        (
            "pgdoc",
            _PGDOC,
            "d2e362131165cc588627295ebc939b07f5357a294031eb517d67399d60f8eb0d",
            lambda: pgdoc.LABELS,
        ),
        ("lm1b", _LM1B, None, tuple),
    )
}


def of_user_files(name: str) -> TextSet:
    """The entry of a name `files:GLOB`."""
    pattern = name.removeprefix(user_files.SCHEME)
    provider = AtHand(
        "files", f"files that fit {pattern}", functools.partial(user_files.read, pattern)
    )
    return TextSet(name, provider, None, functools.partial(user_files.labels, pattern))
