"""Pre-training of a language model on text, with spectral initialization and Frobenius decay of the
products of attention: the unsupervised pre-training of "Initialization and Regularization of
Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi, ICLR 2021), whose LAMB with Frobenius
decay is called FLAMBé there.

Commands:
  python -m experiments.main --config=configs/pretraining.py
  python -m experiments.main --config=configs/pretraining.py:head_scale=1,products=none
  python -m experiments.main --config=configs/pretraining.py:data=pgdoc,size=small,seed=2
  python -m experiments.main --config='configs/pretraining.py:data=files:notes/*.txt,size=tiny'
  python -m experiments.main --config=configs/pretraining.py:task=causal_language_model
  python -m experiments.main --config=configs/pretraining.py:runlocal

Arguments: every key of `configs/base.py` that is not for images, the keys below, and
  task       masked_language_model (BERT) or causal_language_model (GPT)
  size       tiny, small or base: 64, 128 or 768 features; vocabulary, blocks and the recipe go with
             it
  products   none, qk, ov or qk_ov: the attention products that both schemes apply to; to choose
             for each, give products.init and products.decay
`runlocal=True` pre-trains the tiny network on text that comes with this project, in minutes.

Data: lm1b as TFDS prepares it; pgdoc needs a Debian package (`python -m experiments.data fetch
pgdoc`); pydoc is embedded; `files:GLOB` is your own text, a document a file.

Cost: size=base is BERT-base, and work for accelerators; size=small on pgdoc is made for CPU cores
(`configs/sweeps/pretraining_small.py` says how long it takes). `configs/fine_tuning.py` starts from
a finished run.
Expected result: `python -m experiments.report RUN...` makes the table from finished runs.
"""

from ml_collections import ConfigDict

from configs import base
from configs.text import LENGTH, PRODUCTS, language_model_of_size, without_images
from experiments import arguments
from experiments.models.language_model import SIZES

MODELS = {"masked_language_model": "bert", "causal_language_model": "gpt"}


def get_config(arg: str | None = None) -> ConfigDict:
    """BERT-base with attention heads of half the size, whose products have SI and FD."""
    config = base.get_config()
    without_images(config)
    config.name = "pretraining"
    config.data.name = "lm1b"

    # `head_scale` is the share of the full head size (d_model / heads) that queries, keys and
    # values have. `rank_scale` is that of the feed-forward kernels, and with kind=projections of
    # the projections of attention as well (head_scale=1 if they are to be smaller by this alone);
    # at 0 they stay dense.
    config.model = ConfigDict({"name": "", "max_length": 0, "dropout": 0.0})
    config.model.head_scale = 0.5
    config.products.init = config.products.decay = "qk_ov"
    # Subwords of the vocabulary, and tokens of a block of text.
    config.vocabulary_size = 0
    config.block_length = 0

    # LAMB as published for BERT, and Frobenius decay where it has weight decay.
    config.epochs = 1  # The length is given by `steps`.
    config.optimizer = "lamb"
    config.clip_norm = 1.0
    config.schedule = "linear"
    config.warmup_learning_rate = 1e-7
    config.decay_position = "decoupled"
    config.weight_decay = 0.01
    _of_task("masked_language_model")(config)
    _of_size("base")(config)
    return arguments.apply(
        config,
        arg,
        presets={
            "runlocal": _runlocal,
            "task": {task: _of_task(task) for task in MODELS},
            "size": {name: _of_size(name) for name in SIZES},
            "products": PRODUCTS,
        },
    )


def _of_task(task: str) -> arguments.Preset:
    def preset(config: ConfigDict) -> None:
        config.task = task
        config.model.name = MODELS[task]

    return preset


def _of_size(name: str) -> arguments.Preset:
    def preset(config: ConfigDict) -> None:
        language_model_of_size(config, name)
        config.block_length = LENGTH[name]
        if name == "base":
            config.batch_size, config.eval_batch_size = 512, 64
            config.steps, config.warmup_steps, config.learning_rate = 250_000, 2500, 6.25e-4
        else:
            config.batch_size = config.eval_batch_size = 32
            config.steps, config.warmup_steps, config.learning_rate = 1500, 150, 1e-2

    return preset


def _runlocal(config: ConfigDict) -> None:
    """The tiny network on the help texts of Python."""
    _of_size("tiny")(config)
    config.name = "pretraining_local"
    config.data.name = "pydoc"
    config.batch_size = 64
    config.steps, config.warmup_steps = 500, 50
