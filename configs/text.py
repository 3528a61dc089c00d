"""What the configs of tasks on text have in common, and those of language models besides."""

from ml_collections import ConfigDict

from experiments.accepted_values import CHOICES
from experiments.arguments import Preset
from experiments.models.language_model import SIZES

_FOR_IMAGES = ("augment", "validation", "expected_accuracy")

_VOCABULARY = {"tiny": 1000, "small": 4000, "base": 30_522}
LENGTH = {"tiny": 64, "small": 128, "base": 512}  # Tokens of a block, and learned positions.


def without_images(config: ConfigDict) -> None:
    """Leaves out what is for images, and says that nothing is convolved."""
    for key in _FOR_IMAGES:
        del config[key]
    config.kind = "linear"
    config.layout = "as_written"  # There is nothing to convolve, so no layout to choose.


def _products(word: str) -> Preset:
    """Both schemes for the attention products that a word stands for."""

    def preset(config: ConfigDict) -> None:
        config.products.init = config.products.decay = word

    return preset


PRODUCTS = {word: _products(word) for word in CHOICES["products.decay"]}


def language_model_of_size(config: ConfigDict, name: str) -> None:
    """The sizes of a language model and of its vocabulary."""
    for key, value in SIZES[name].items():
        config.model[key] = value
    config.vocabulary_size = _VOCABULARY[name]
    config.model.max_length = LENGTH[name]
    # Of a text that a small one reads a few times, there is nothing to overfit to.
    config.model.dropout = 0.1 if name == "base" else 0.0
