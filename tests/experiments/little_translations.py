"""A translation run small enough to be tested as a whole: some words, in text files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import translation
from experiments.train import train_and_evaluate

WORDS = {"Hund": "dog", "Katze": "cat", "Haus": "house", "Baum": "tree", "der": "the"}
VOCABULARY = 290
ARGUMENT = (
    f"runlocal,data=files,vocabulary_size={VOCABULARY},d_model=8,d_ff=16,rank_scale=0.5,"
    "init=regular,products=qk_ov,batch_size=400,steps=7,weight_decay=0.01,dropout=0.1,beam=2,"
    "decoding.max_length=6,max_length=32,model.max_length=32,forms=count"
)


def write_text(folder: Path, **lines: list[bytes]) -> Path:
    """Six files of sequences of one, two and five words; `train_de=` and so on replace one."""
    folder.mkdir(parents=True, exist_ok=True)
    short = [s for n in (1, 2) for s in itertools.product(WORDS, repeat=n)]
    long = list(itertools.product(WORDS, repeat=5))[::37]
    parts = {
        "train": short[:20] + long[16:],
        "valid": short[20:22] + long[:2],
        "test": short[22:24] + long[2:4],
    }
    for split, chosen in parts.items():
        german = [" ".join(words).encode() for words in chosen]
        english = [" ".join(map(WORDS.get, words)).encode() for words in chosen]
        for language, text in (("de", german), ("en", english)):
            text = lines.get(f"{split}_{language}", text)
            (folder / f"{split}.{language}").write_bytes(b"".join(line + b"\n" for line in text))
    return folder


def config(text: Path, argument: str = "", **keys: Any) -> ConfigDict:
    """The config of a little run, refined by an argument and by keys, dots written as `__`."""
    made = translation.get_config(",".join(filter(None, [ARGUMENT, argument])))
    made.data.dir = str(text)
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return made


def train(folder: Path, text: Path, say: Callable[[str], None] | None = None, **keys: Any) -> Path:
    """A run in this process."""
    return train_and_evaluate(config(text, **keys), folder, say or (lambda line: None))
