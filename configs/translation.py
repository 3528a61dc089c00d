"""Translation from German to English with a factorized Transformer, as in "Initialization and
Regularization of Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi, ICLR 2021), section
on multi-head attention.

Commands:
  python -m experiments.main --config=configs/translation.py
  python -m experiments.main --config=configs/translation.py:rank_scale=0.25,products=qk_ov,seed=2
  python -m experiments.main --config=configs/translation.py:data=lohelp,size=small
  python -m experiments.main --config=configs/translation.py:runlocal

Arguments: every key of `configs/base.py` that is not for images, the keys below, and
  size       tiny, small or published: 64, 128 or 256 features; the vocabulary is sized with it
  recipe     published (Nesterov momentum 0.99, clipping to 0.1) or adam
  products   none, qk, ov or qk_ov: the attention products that both schemes apply to; to choose
             for each, give products.init and products.decay
`runlocal=True` teaches the tiny network to spell numbers, in a few minutes without any data.

Data: iwslt14_de_en and ted_de_en need the network; lohelp needs two Debian packages (`python -m
experiments.data fetch lohelp`); numwords is generated.

Cost: the published size is work for an accelerator (100,000 steps of 4,000 tokens); size=small on
lohelp takes about a quarter of an hour per thousand steps on one CPU core.
Expected result: `python -m experiments.report RUN...` makes the table from finished runs.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import base
from configs.text import PRODUCTS, without_images
from experiments import arguments
from experiments.models.transformer import SIZES

VOCABULARY = {"tiny": 1000, "small": 4000, "published": 10000}


def get_config(arg: str | None = None) -> ConfigDict:
    """The published small Transformer on IWSLT'14 at rank scale 1/2: SI, and FD of the factors."""
    config = base.get_config()
    without_images(config)
    del config.eval_batch_size  # Held-out text comes in the batches that training has.
    config.name = "translation"
    config.task = "translation"
    config.data.name = "iwslt14_de_en"
    config.rank_scale = 0.5
    config.epochs = 1  # The length is given by `steps`.
    config.steps = 100_000
    config.batch_size = 4000  # Tokens of a batch, source or target, padding included.

    # `head_scale` is the share of the full head size (d_model / heads) that queries, keys and
    # values have; None: rank_scale where it is below 1, and otherwise 1. `max_length` is the number
    # of learned positions.
    config.model = ConfigDict({"name": "transformer", "max_length": 1024,
                               "dropout": 0.2, "ffn_dropout": 0.1})  # fmt: skip
    config.model.head_scale = placeholder(float)
    # Subwords of the vocabulary that both languages share.
    config.vocabulary_size = 10_000
    # Longer pairs (in subwords, the end included) are left out of training, and cut in testing.
    config.max_length = 256
    config.label_smoothing = 0.1
    # The beam search at the end. `length_penalty`: scores are divided by length to this power.
    config.decoding = ConfigDict({"beam": 5, "length_penalty": 1.0, "max_length": 200})
    _of_size("published")(config)
    _published(config)

    return arguments.apply(
        config,
        arg,
        presets={
            "runlocal": _runlocal,
            "size": {name: _of_size(name) for name in SIZES},
            "recipe": {"published": _published, "adam": _adam},
            "products": PRODUCTS,
        },
    )


def _of_size(name: str) -> arguments.Preset:
    def preset(config: ConfigDict) -> None:
        for key, value in SIZES[name].items():
            if key != "head_size":  # That is d_model / heads, times `head_scale`.
                config.model[key] = value
        config.vocabulary_size = VOCABULARY[name]

    return preset


def _published(config: ConfigDict) -> None:
    """Decay of products is clipped and passes through the momentum, plain decay does neither."""
    config.optimizer = "sgd"
    config.nesterov = True
    config.momentum = 0.99
    config.clip_norm = 0.1
    config.schedule = "inverse_sqrt"
    config.learning_rate = 0.25
    config.warmup_steps = 4000
    config.warmup_learning_rate = 0.25
    config.decay_position = "published"
    config.weight_decay = 0.0
    config.frobenius_decay = 1e-5


def _adam(config: ConfigDict) -> None:
    """Adam with both decays decoupled, so that a coefficient means the same for either."""
    config.optimizer = "adam"
    config.nesterov = False
    config.momentum = 0.9
    config.clip_norm = 1.0
    config.schedule = "inverse_sqrt"
    config.learning_rate = 2e-3
    config.warmup_steps = 400
    config.warmup_learning_rate = 1e-6
    config.decay_position = "decoupled"
    config.weight_decay = 1e-2
    config.frobenius_decay = 0.0


def _runlocal(config: ConfigDict) -> None:
    """Numbers from 0 to 999,999, written out in German and to be written out in English."""
    _of_size("tiny")(config)
    _adam(config)
    config.name = "translation_local"
    config.data.name = "numwords"
    config.rank_scale = 0.0
    config.vocabulary_size = 400
    config.model.max_length = config.max_length = 64
    config.model.dropout = config.model.ffn_dropout = 0.0
    config.batch_size = 1500
    config.steps = 800
    config.warmup_steps = 100
    config.weight_decay = 0.0
