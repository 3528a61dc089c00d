"""Fine-tuning: a pre-trained encoder learns to tell what a paragraph is from, or a new one does.

Commands:
  python -m experiments.main --config=configs/fine_tuning.py:start=runs/pretraining-…
  python -m experiments.main --config=configs/fine_tuning.py:data=pgdoc,size=small,start=RUN
  python -m experiments.main --config=configs/fine_tuning.py:data=pgdoc,size=small
  python -m experiments.main --config=configs/fine_tuning.py:runlocal

Arguments: every key of `configs/base.py` that is not for images, the keys below, and
  size       as in `configs/pretraining.py`
  products   as in `configs/pretraining.py`
With `start` the encoder and the vocabulary are those of a finished run of `configs/pretraining.py`,
whose size and head_scale this one has to have. Without it everything is new. A rank_scale makes the
encoder low rank (again), from what it was pre-trained to.
`runlocal=True` trains the tiny network from nothing on text that comes with this project.

Data: the parts of PostgreSQL's manual (pgdoc), what Python's help is about (pydoc), or the folders
of your own text (`files:GLOB`). Paragraphs of one document are all trained on, or all tested.

Cost: minutes on CPU cores at size=small.
Expected result: `python -m experiments.report RUN...` makes the table from finished runs.
"""

from ml_collections import ConfigDict

from configs import base
from configs.text import LENGTH, PRODUCTS, language_model_of_size, without_images
from experiments import arguments
from experiments.models.language_model import SIZES


def get_config(arg: str | None = None) -> ConfigDict:
    """BERT-base with attention heads of half the size, on the parts of PostgreSQL's manual."""
    config = base.get_config()
    without_images(config)
    config.name = "fine_tuning"
    config.task = "text_classification"
    config.data.name = "pgdoc"
    config.model = ConfigDict({"name": "bert_classifier", "max_length": 0, "dropout": 0.0})
    config.model.head_scale = 0.5
    # Subwords of the vocabulary (those of `start`); longer paragraphs are cut.
    config.vocabulary_size = 0
    config.max_length = 0

    # Adam with a rate that rises and falls, as usual for fine-tuning.
    config.epochs = 3
    config.batch_size = 32
    config.optimizer = "adam"
    config.clip_norm = 1.0
    config.schedule = "linear"
    config.warmup_learning_rate = 1e-7
    config.warmup_steps = 100
    config.decay_position = "decoupled"
    config.weight_decay = 0.01
    _of_size("base")(config)
    return arguments.apply(
        config,
        arg,
        presets={
            "runlocal": _runlocal,
            "size": {name: _of_size(name) for name in SIZES},
            "products": PRODUCTS,
        },
    )


def _of_size(name: str) -> arguments.Preset:
    def preset(config: ConfigDict) -> None:
        language_model_of_size(config, name)
        config.max_length = min(LENGTH[name], 128)
        config.learning_rate = 5e-5 if name == "base" else 5e-4

    return preset


def _runlocal(config: ConfigDict) -> None:
    """The tiny network, from nothing, on the help texts of Python."""
    _of_size("tiny")(config)
    config.name = "fine_tuning_local"
    config.data.name = "pydoc"
    config.warmup_steps = 20
