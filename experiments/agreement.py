"""Several processes carry out one run: what each was given must be what the first was given.

Compiled programs are the same in all of them, or they wait for each other in different places. So
the config, the run folder, the software and the data are compared with those of the first process
before anything depends on them, and the run folder must be one and the same, seen by all.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from ml_collections import ConfigDict

from experiments import config_keys, files, processes
from experiments.errors import RunError
from experiments.result import Data, versions

# A file of another host may be seen late: NFS remembers for up to a minute what was not there.
SEEN_AFTER_SECONDS = 90.0


def require_one_run(config: ConfigDict, workdir: Path) -> None:
    """Compares what this process was given with what the first one was given.

    Args:
      config: settled.
      workdir: the run folder.

    Raises:
      RunError: they differ.
    """
    mine = files.plain(config.to_dict())
    ours = {
        "workdir": str(workdir.resolve()),
        **{f"the version of {k}": v for k, v in versions().items()},
    }
    of_the_first = processes.text_of_the_first(
        "the run", json.dumps({"config": mine, "rest": ours})
    )
    first = json.loads(of_the_first)
    found = config_keys.differences(first["config"], mine, config_keys.OF_A_HOST)
    found |= {
        key: (first["rest"].get(key), value)
        for key, value in ours.items()
        if first["rest"].get(key) != value
    }
    if found:
        words = [
            f"{key} is {there!r} there and {here!r} here" for key, (there, here) in found.items()
        ]
        raise RunError(
            f"process {processes.index()} was started otherwise than process 0: "
            f"{'; '.join(words[:4])}. Give all of them the same command"
        )


def require_same_data(data: Data) -> None:
    """Compares the data of this process with those of the first one.

    Raises:
      RunError: they differ.
    """
    first = processes.text_of_the_first("the data", data.identity)
    if first != data.identity:
        raise RunError(
            f"process {processes.index()} has other data than process 0: {data.name} from "
            f"{data.origin} has fingerprint {data.identity[:12]}…, there {first[:12]}…"
        )


def require_seen(path: Path) -> None:
    """Waits until a file that the first process has written is seen by this one.

    Raises:
      RunError: it is not, and so the processes have run folders of their own.
    """
    until = time.monotonic() + SEEN_AFTER_SECONDS
    while processes.several() and not path.exists():
        if time.monotonic() > until:
            raise RunError(
                f"process {processes.index()} does not see {path}, which process 0 has written: "
                "the run folder must be on a file system that all hosts share"
            )
        time.sleep(0.1)
