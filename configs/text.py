"""What the configs of tasks on text have in common."""

from ml_collections import ConfigDict

from experiments.arguments import Preset

_FOR_IMAGES = ("augment", "validation", "expected_accuracy")


def without_images(config: ConfigDict) -> None:
    """Leaves out what is for images, and says that nothing is convolved."""
    for key in _FOR_IMAGES:
        del config[key]
    config.kind = "linear"
    config.layout = "as_written"  # There is nothing to convolve, so no layout to choose.


def products(word: str) -> Preset:
    """Both schemes for the attention products that a word stands for."""

    def preset(config: ConfigDict) -> None:
        config.products.init = config.products.decay = word

    return preset
