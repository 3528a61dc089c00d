"""What a run is called in tables and plots, made from its config alone.

    the network   ResNet-32, width 0.25
    the method    dense, regular, SI, FD, SI + FD, pruning; "regular" is regular initialization with
                  plain decay, SI spectral initialization, FD Frobenius decay
                  Pufferfish, Cuttlefish + FD: low rank from the middle of training on
    the products  QK and OV products: SI + FD, of the queries and keys, and the outputs and values,
                  of attention, which the schemes are applied to as they are to factors
    the size      rank scale 0.111, ratio 0.1, energy 0.9

Every function takes a flat config, {dotted key: value}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import config_keys

Config = Mapping[str, Any]
Size = tuple[str, float]
"""How large a network was asked to become: a key of `config_keys.SIZES` and its value."""

_HEAD_SCALE = "model.head_scale"

METHOD_KEYS = (
    *("method", "kind", "variant", "init", "decay", "factor_norm"),
    *("products.init", "products.decay", _HEAD_SCALE),
)
"""The keys that the name of a method tells all about."""

_NETWORKS = {
    "resnet": "ResNet-{depth}",
    "projection_resnet": "ResNet-{depth} (64/128/256)",
    "vgg": "VGG-{depth}",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "wide_resnet50": "WRN-50-2",
    "resmlp": "ResMLP-{layers}",
}
_DEIT = {192: "tiny", 384: "small", 768: "base"}  # By the features of a token.
_OF_LAYERS = {
    "transformer": "Transformer",
    "bert": "BERT",
    "bert_classifier": "BERT classifier",
    "gpt": "GPT",
}
# In the order of the tables; '' is the usual way, which has no word of its own.
_KINDS = {
    "conv": "spatial factors",
    "channel": "channel factors",
    "linear": "",
    "projections": "attention projections",
    "tensor_train": "tensor train",
    "tucker": "Tucker",
}
_OF_CONVOLUTIONS = ("conv", "channel")
_VARIANTS = {"flat": "", "deep": "deep"}
_DECAYS = {"plain": "", "none": "no decay", "crs": "CRS", "frobenius": "FD"}
_INITS = {
    "regular": "",
    "spectral": "SI",
    "variance_matched": "variance-matched",
    "spectral_ones": "SI with ones",
}
_SELECTING = {"pufferfish": "Pufferfish", "cuttlefish": "Cuttlefish"}
_FACTOR_NORM = "norms between factors"
_PRODUCTS = ("none", "qk", "ov", "qk_ov")
_RUNS = {"replay": "norms replayed", "start": "pre-trained"}
_HEADS = "head scale"
_EXPLANATIONS = {
    _HEADS: "head scale: the size of attention heads as a share of the dense network's",
    "regular": "regular: regular initialization with plain weight decay of the factors",
    "SI": "SI: spectral initialization",
    "SI with ones": "SI with ones: spectral initialization with equal singular values",
    "variance-matched": "variance-matched: the product's entries start at the dense variance",
    "FD": "FD: Frobenius decay",
    "CRS": "CRS: plain decay of the factors, scaled by the compression rate",
    "no decay": "no decay: the factors are not decayed",
    "Pufferfish": "Pufferfish: dense for a given number of epochs, then low rank at a given share "
    "of full rank",
    "Cuttlefish": "Cuttlefish: dense until the stable ranks of the kernels have settled, then low "
    "rank at the ranks that follow from them",
    _FACTOR_NORM: "norms between factors: a batch norm between the two factors of each convolution",
    "spatial factors": "spatial factors: of a k x k convolution, k x 1 and 1 x k",
    "channel factors": "channel factors: of a k x k convolution, k x k to fewer channels and 1 x 1",
    "deep": "deep: a square matrix between the two factors",
    "QK": "QK products: of queries and keys, each attention head by itself",
    "OV": "OV products: of outputs and values, each attention head by itself",
    "pre-trained": "pre-trained: the network begins with the encoder of another run",
    "attention projections": "attention projections: those of attention are factorized as well",
    "norms replayed": "norms replayed: after each step the kernels are set to the norms of another "
    "run",
}


def network_name(config: Config) -> str:
    """The dense network of a config.

    Example:
      >>> network_name({"model.name": "vgg", "model.depth": 19, "model.width": 0.25})
      'VGG-19, width 0.25'
    """
    model, width = config["model.name"], config.get("model.width", 1)
    if model in _OF_LAYERS:
        layers = config["model.layers"]
        return f"{_OF_LAYERS[model]} {config['model.d_model']}, {layers} layer{'s' * (layers != 1)}"
    if model == "wide_resnet":
        return f"WRN-{config['model.depth']}-{10 * width:g}"
    if model == "deit":
        features = config["model.d_model"]
        return f"DeiT-{_DEIT.get(features, features)}"
    name = _NETWORKS.get(model, model + " of depth {depth}").format(
        # What is not said is as published.
        depth=config.get("model.depth"),
        layers=config.get("model.layers", 36),
    )
    return name if width == 1 else f"{name}, width {width:g}"


def size(config: Config) -> Size | None:
    """How large the network was asked to become; None for a dense one, and where ranks are
    selected in training."""
    return next(((key, config[key]) for key in config_keys.SIZES if config.get(key)), None)


def size_name(asked: Size) -> str:
    """A size in words.

    Example:
      >>> size_name(("rank_scale", 0.111))
      'rank scale 0.111'
    """
    return f"{asked[0].replace('_', ' ')} {as_written(asked[1])}"


def dense(config: Config) -> bool:
    """Whether all kernels stay as they are, neither factorized nor pruned."""
    return not (config_keys.has_factors(config) or pruned(config))


def pruned(config: Config) -> bool:
    """Whether entries of the kernels were set to zero."""
    return config["method"] == "prune"


def replays(config: Config) -> bool:
    """Whether the norms of the kernels were set to those of another run."""
    return bool(config.get("replay"))


def pretrained(config: Config) -> bool:
    """Whether a part of the network is from a run of another task."""
    return bool(config.get("start")) and config["task"] == "text_classification"


NAMED_RUNS = {"replay": replays, "start": pretrained}
"""The keys that name another run, by what says whether the name of the method tells of it."""


def of_network(key: str) -> bool:
    """Whether a key is of the dense network, in which what is compared agrees.

    Example:
      >>> [of_network(key) for key in ("model.depth", "model.head_scale", "rank_scale")]
      [True, False, False]
    """
    return key == "vocabulary_size" or (key.startswith("model.") and key != _HEAD_SCALE)


def smaller_heads(config: Config) -> bool:
    """Whether the heads of attention are smaller than those of the dense network."""
    return config.get(_HEAD_SCALE, 1.0) != 1.0


DECAYS_BY_KEY = {"weight_decay": "weight decay", "frobenius_decay": "Frobenius decay"}
"""The coefficients of decay in words."""


def decay_key(config: Config) -> str:
    """The coefficient that a study varies: that of Frobenius decay where it has one of its own."""
    return "frobenius_decay" if concerned("frobenius_decay", config) else "weight_decay"


def concerned(key: str, config: Config) -> bool:
    """Whether a key says something about a run that its other keys do not.

    Those of the factors say nothing where there are none, nor how convolutions are factorized,
    `frobenius_decay` where it is 0 (as `weight_decay`) or nothing decays that way, and the size of
    heads where it is the usual one.
    """
    factors = config_keys.has_factors(config)
    if key == "frobenius_decay":
        products = config.get("products.decay", "none") != "none"
        return bool(config.get(key)) and (products or (factors and config["decay"] == "frobenius"))
    if key == _HEAD_SCALE:
        usual = config_keys.usual_head_scale(config)
        return config.get(key, usual) != usual
    if key == "kind":
        return factors or config[key] not in _OF_CONVOLUTIONS
    return factors or key not in config_keys.FACTOR_KEYS


def comparable(key: str, config: Config) -> Any:
    """Among which settings a difference in a key is told: those for which this is equal.

    How ranks are selected has usual values for each method, which its name stands for.
    """
    return config["method"] if key.startswith("selection.") else None


def method_name(config: Config) -> str:
    """How the network was made small and trained.

    Example:
      >>> method_name({"method": "factorize", "kind": "conv", "variant": "flat", "ratio": 0.1,
      ...              "rank_scale": 0, "energy": 0, "init": "spectral", "decay": "frobenius"})
      'SI + FD'
    """
    selects = config_keys.selects_ranks(config)
    usual = config["kind"] == ("channel" if selects else "conv")
    told = concerned("kind", config) and not usual
    kind = _KINDS.get(config["kind"], config["kind"]) if told else ""
    of_runs = [word for key, word in _RUNS.items() if NAMED_RUNS[key](config)]
    heads = f"{_HEADS} {config[_HEAD_SCALE]:g}" if concerned(_HEAD_SCALE, config) else ""
    if not config_keys.has_factors(config):
        whole = "pruning" if pruned(config) else (heads or "dense")
        return ", ".join(filter(None, [kind, whole, *_of_products(config), *of_runs]))
    variant = _VARIANTS.get(config["variant"], config["variant"])
    init = _SELECTING[config["method"]] if selects else _INITS.get(config["init"], config["init"])
    decay = _DECAYS.get(config["decay"], config["decay"])
    apart = [decay] if decay == "no decay" else []
    joined = " + ".join(word for word in (init, decay) if word and word not in apart)
    apart += [_FACTOR_NORM] if config.get("factor_norm") else []
    apart += [heads]
    apart += [*_of_products(config), *of_runs]
    return ", ".join(filter(None, [kind, variant, joined or "regular", *apart]))


def method_order(config: Config) -> tuple[int, ...]:
    """A sort key: dense, then regular, SI, FD, SI + FD, those again with products of attention,
    methods that select ranks in training, and pruning last."""

    def place(key: str, words: Iterable[str]) -> int:
        return [*words, config.get(key)].index(config.get(key))

    return (
        *(
            int(not dense(config)),
            int(smaller_heads(config)),
            int(pruned(config)),
            place("method", ("factorize", *_SELECTING)),
        ),
        *(place("kind", _KINDS), place("variant", _VARIANTS)),
        *(place("products.decay", _PRODUCTS), place("products.init", _PRODUCTS)),
        *(place("decay", _DECAYS), place("init", _INITS)),
        *(int(named(config)) for named in NAMED_RUNS.values()),
    )


def explanations(methods: Iterable[str]) -> list[str]:
    """What the words of some methods' names mean, in a fixed order."""
    words = {word for name in methods for word in re.split(r", | \+ |: | and | products", name)}
    words |= {re.sub(r" [\d.]+$", "", word) for word in words}
    return [text for word, text in _EXPLANATIONS.items() if word in words]


def _of_products(config: Config) -> list[str]:
    """What is done to the products of attention, such as 'QK and OV products: SI + FD'."""
    schemes = {}
    for group in ("qk", "ov"):
        done = {
            word
            for key, word in (("products.init", "SI"), ("products.decay", "FD"))
            if group in config.get(key, "none").split("_")
        }
        if done:
            schemes[group.upper()] = " + ".join(sorted(done, reverse=True))
    if len({*schemes.values()}) == 1:
        return [f"{' and '.join(schemes)} products: {next(iter(schemes.values()))}"]
    return [f"{group} products: {words}" for group, words in schemes.items()]


def as_written(value: Any) -> str:
    """A value of a config as it is written; 1.0 and 1 are the same, and '' is none."""
    return f"{value:.12g}" if isinstance(value, float) else str(value) or "none"
