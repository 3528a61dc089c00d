"""Runs on text small enough to be tested as a whole: some words, in text files in two folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import fine_tuning, pretraining
from experiments.train import train_and_evaluate

WORDS = {
    "animals": ["dog", "cat", "horse", "runs", "sleeps", "the", "a"],
    "plants": ["tree", "flower", "grass", "grows", "stands", "the", "a"],
}
VOCABULARY = 300
SIZES = (
    f"vocabulary_size={VOCABULARY},d_model=8,d_ff=16,heads=2,layers=1,model.max_length=16,"
    "batch_size=8,eval_batch_size=5,head_scale=0.5,weight_decay=0.01,rank_scale=0.5,products=qk_ov,"
    "warmup_steps=2"
)
PRETRAINING = f"runlocal,block_length=16,steps=7,forms=count,{SIZES}"
FINE_TUNING = f"runlocal,max_length=16,epochs=2,{SIZES}"


def write_text(folder: Path) -> str:
    """Twelve files in each of two folders; returns the name of the data set."""
    rng = np.random.default_rng(0)
    for kind, words in WORDS.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            lines = [" ".join(rng.choice(words, 10)) for _ in range(6)]
            (folder / kind / f"{number}.txt").write_text("\n\n".join(lines) + "\n")
    return f"files:{folder}/*/*.txt"


def pretrain(data: str, argument: str = "", **keys: Any) -> ConfigDict:
    """The config of a little pre-training run, refined by an argument and by keys."""
    return _with(pretraining.get_config(refined(PRETRAINING, argument)), data, keys)


def fine_tune(data: str, argument: str = "", **keys: Any) -> ConfigDict:
    """The config of a little fine-tuning run, refined by an argument and by keys."""
    return _with(fine_tuning.get_config(refined(FINE_TUNING, argument)), data, keys)


def refined(argument: str, by: str) -> str:
    """An argument with the values of another one, where that has some."""
    values = dict(part.split("=", 1) for part in by.split(",") if part)
    kept = [part for part in argument.split(",") if part.split("=")[0] not in values]
    return ",".join([*kept, *(f"{name}={value}" for name, value in values.items())])


def train(config: ConfigDict, folder: Path, say: Any = lambda line: None) -> Path:
    """A run in this process."""
    return train_and_evaluate(config, folder, say)


def _with(config: ConfigDict, data: str, keys: dict[str, Any]) -> ConfigDict:
    config.data.name = data
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config
