"""Where data sets are looked for on this machine.

| place | argument | environment variable | default |
| --- | --- | --- | --- |
| own cache and original files | `dir` | `LOWRANK_JAX_DATA_DIR` | `~/.cache/lowrank_jax` |
| prepared TFDS data | `tfds_dir` | `TFDS_DATA_DIR` | `~/tensorflow_datasets` |
"""

import dataclasses
import os
from pathlib import Path

from experiments.data.original import Original


@dataclasses.dataclass(frozen=True)
class Places:
    """The two folders of the user.

    Attributes:
      data_dir: `data.dir`.
      tfds_dir: `data.tfds_dir`.
    """

    data_dir: Path
    tfds_dir: Path

    @classmethod
    def of(cls, data_dir: str | None, tfds_dir: str | None) -> "Places":
        """From arguments, else the environment, else the defaults; an empty string is no folder."""
        return cls(
            _folder(data_dir, "LOWRANK_JAX_DATA_DIR", "~/.cache/lowrank_jax"),
            _folder(tfds_dir, "TFDS_DATA_DIR", "~/tensorflow_datasets"),
        )

    def download_folder(self, original: Original) -> Path:
        """Where the original files of a data set are put."""
        return self.data_dir / original.subfolder

    def file_folders(self, original: Original) -> tuple[Path, ...]:
        """Where the original files of a data set are looked for, in order."""
        manual = self.tfds_dir / "downloads" / "manual" / original.subfolder
        system = () if original.system_folder is None else (original.system_folder,)
        return (self.download_folder(original), manual, *system)


def _folder(argument: str | None, variable: str, default: str) -> Path:
    return Path(argument or os.environ.get(variable) or default).expanduser()


def short(path: Path) -> str:
    """The path with the home folder as `~`, for messages."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # elsewhere, or there is no home
        return str(path)
