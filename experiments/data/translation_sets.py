"""The translation sets: where the original files of each are, and their checksums.

The checksum of the TED talks is the one that tensorflow-datasets has registered. The address of
IWSLT'14 is that of fairseq's `prepare-iwslt14.sh`, which states no checksum.
"""

import dataclasses
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
from experiments.data.translation import iwslt14, lohelp, numwords, ted, user_files
from experiments.data.translation.parallel_text import ARRAY_NAMES, ParallelText


@dataclasses.dataclass(frozen=True)
class TranslationSet(DataSet[ParallelText]):
    """Parallel text, German to English."""

    array_names: ClassVar[tuple[str, ...]] = ARRAY_NAMES

    def build(self, origin: str, arrays: Arrays) -> ParallelText:
        return ParallelText.from_arrays(self.name, origin, *arrays)


_PACKAGES = ("libreoffice-help-de", "libreoffice-help-en-us")

_LOHELP = Original(
    releases=(
        Release(
            tuple(
                OriginalFile(f"{package}_*.deb", f"apt:{package}", size, checksum=None)
                for package, size in zip(_PACKAGES, (3_293_908, 1_753_504), strict=True)
            ),
            lohelp.read,
        ),
    ),
    subfolder="lohelp",
    system_folder=None,
    install=f"mkdir -p {{folder}} && cd {{folder}} && apt-get download {' '.join(_PACKAGES)}",
    prepared=None,
    instead=("numwords",),
)

_IWSLT14 = Original(
    releases=(
        Release(
            (
                OriginalFile(
                    "de-en.tgz",
                    "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz",
                    19_982_877,
                    checksum=None,
                ),
            ),
            iwslt14.read,
        ),
    ),
    subfolder="iwslt14_de_en",
    system_folder=None,
    install=None,
    prepared=None,
    instead=("lohelp", "numwords"),
)

_TED = Original(
    releases=(
        Release(
            (
                OriginalFile(
                    "ted_talks.tar.gz",
                    "http://phontron.com/data/ted_talks.tar.gz",
                    352_222_045,
                    "sha256:03457b9ebc6d60839f1a48c5a03c940266aff78b81fcda4c6d9e2a5a7fb670ae",
                ),
            ),
            ted.read_archive,
        ),
    ),
    subfolder="",
    system_folder=None,
    install=None,
    prepared=Prepared("ted_multi_translate", ted.read_prepared),
    instead=("lohelp", "numwords"),
)

_USER_FILES = Original(
    releases=(
        Release(
            tuple(OriginalFile(name, None, 0, checksum=None) for name in user_files.NAMES),
            user_files.read,
        ),
    ),
    subfolder="",
    system_folder=None,
    install=None,
    prepared=None,
    instead=("lohelp", "numwords"),
)

TRANSLATION_SETS: dict[str, TranslationSet] = {
    name: TranslationSet(name, provider, fingerprint)
    for name, provider, fingerprint in (
        (
            "numwords",
            AtHand.embedded(numwords.read),
            "4f69220dc15ee2317f5d718bd2c3491f22ceb96800f30254c1e5301163582228",
        ),
        (
            "lohelp",
            _LOHELP,
            "92571c99caf2aa241b3892069bd353d57462601e67436d9e5dcf3752bb95896c",
        ),
        ("iwslt14_de_en", _IWSLT14, None),
        ("ted_de_en", _TED, None),
        ("files", _USER_FILES, None),
    )
}
