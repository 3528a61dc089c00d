"""Records of a prepared TFDS folder at random: of a split too large to be read as a whole.

Of TFDS's file formats array_record alone can be read in any order. A split is its shards,
`NAME-SPLIT.array_record-00000-of-01024`, with as many records each as `dataset_info.json` says; the
number of a record counts through the shards. They are opened when they are first read from, by
each process for itself.
"""

import dataclasses
import functools
import json
import resource
from pathlib import Path
from typing import Any

from experiments.data.errors import DataCorrupt
from experiments.errors import RunError

FORMAT = "array_record"


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """The records of one split; small, and made to be sent to other processes.

    Attributes:
      paths: of the shards.
      lengths: how many records each has.
    """

    paths: tuple[str, ...]
    lengths: tuple[int, ...]

    @classmethod
    def find(cls, folder: Path, split: str) -> "ArrayRecords":
        """The split of a prepared version, checked without reading it.

        Raises:
          RunError: it is prepared in another format.
          DataCorrupt: `dataset_info.json` is not understood, or the split or a shard is missing.
        """
        info = folder / "dataset_info.json"
        try:
            content = json.loads(info.read_text())
            formats = [content.get("fileFormat", "tfrecord")]
            formats += content.get("alternativeFileFormats", [])  # Converted in place.
            name = content["name"]
            found = {
                entry["name"]: tuple(map(int, entry["shardLengths"])) for entry in content["splits"]
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataCorrupt(f"{info}: not understood ({error!r})") from error
        if FORMAT not in formats:
            raise RunError(
                f"{folder}: prepared as {formats[0]}, which cannot be read in any order; where "
                "TensorFlow is installed, convert it in place: tfds convert_format "
                f"--dataset_version_dir={folder} --out_file_format={FORMAT}"
            )
        if not sum(found.get(split, ())):
            raise DataCorrupt(
                f"{folder}: no split {split!r}, but {', '.join(found) or 'none'}; prepare it again "
                "with the archive of that split in place"
            )
        lengths = found[split]
        paths = [
            folder / f"{name}-{split}.{FORMAT}-{number:05}-of-{len(lengths):05}"
            for number in range(len(lengths))
        ]
        if missing := [path for path in paths if not path.is_file()]:
            raise DataCorrupt(
                f"{missing[0]}: not there, and with it {len(missing)} of {len(paths)} shards of "
                f"the split {split!r}; copy or prepare them again"
            )
        return cls(tuple(map(str, paths)), lengths)

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitem__(self, number: int) -> bytes:
        """A record; `DataCorrupt` if it cannot be read."""
        try:
            record: bytes = self._source[number]
        except Exception as error:  # The reader has no class of its own for what it raises.
            raise DataCorrupt(
                f"{self.place(number)}: cannot be read ({error}); copy or prepare that file again"
            ) from error
        return record

    def place(self, number: int) -> str:
        """Shard and number within it of a record, for messages."""
        for path, length in zip(self.paths, self.lengths, strict=True):
            if number < length:
                return f"{path}, record {number}"
            number -= length
        raise IndexError(number)

    @functools.cached_property
    def _source(self) -> Any:
        from grain.sources import ArrayRecordDataSource  # slow to import, and rarely needed

        _allow_open_files(len(self.paths))
        # With a range behind each name no file is opened to count its records.
        return ArrayRecordDataSource(
            [f"{path}[0:{length}]" for path, length in zip(self.paths, self.lengths, strict=True)]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "lengths": self.lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _allow_open_files(more: int) -> None:
    """Every shard stays open; the usual limit of 1024 files is no more than what ImageNet has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
