"""What a run is called in tables and plots, made from its config alone.

    the network   ResNet-32, width 0.25
    the method    dense, regular, SI, FD, SI + FD, pruning; "regular" is regular initialization with
                  plain decay, SI spectral initialization, FD Frobenius decay
    the size      rank scale 0.111, ratio 0.1, energy 0.9

Every function takes a flat config, {dotted key: value}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from experiments import arguments

Config = Mapping[str, Any]
Size = tuple[str, float]
"""How large a network was asked to become: a key of `arguments.SIZES` and its value."""

METHOD_KEYS = ("method", "kind", "variant", "init", "decay")
"""The keys that the name of a method tells all about."""

_NETWORKS = {
    "resnet": "ResNet-{depth}",
    "projection_resnet": "ResNet-{depth} (64/128/256)",
    "vgg": "VGG-{depth}",
}
# In the order of the tables; what comes first is the usual way and has no word of its own.
_KINDS = {"conv": "", "tensor_train": "tensor train", "tucker": "Tucker"}
_VARIANTS = {"flat": "", "deep": "deep"}
_DECAYS = {"plain": "", "none": "no decay", "crs": "CRS", "frobenius": "FD"}
_INITS = {
    "regular": "",
    "spectral": "SI",
    "variance_matched": "variance-matched",
    "spectral_ones": "SI with ones",
}
_EXPLANATIONS = {
    "regular": "regular: regular initialization with plain weight decay of the factors",
    "SI": "SI: spectral initialization",
    "SI with ones": "SI with ones: spectral initialization with equal singular values",
    "variance-matched": "variance-matched: the product's entries start at the dense variance",
    "FD": "FD: Frobenius decay",
    "CRS": "CRS: plain decay of the factors, scaled by the compression rate",
    "no decay": "no decay: the factors are not decayed",
    "deep": "deep: a square matrix between the two factors",
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
    if model == "wide_resnet":
        return f"WRN-{config['model.depth']}-{10 * width:g}"
    name = _NETWORKS.get(model, model + " of depth {depth}").format(depth=config.get("model.depth"))
    return name if width == 1 else f"{name}, width {width:g}"


def size(config: Config) -> Size | None:
    """How large the network was asked to become; None for a dense one."""
    return next(((key, config[key]) for key in arguments.SIZES if config.get(key)), None)


def size_name(asked: Size) -> str:
    """A size in words.

    Example:
      >>> size_name(("rank_scale", 0.111))
      'rank scale 0.111'
    """
    return f"{asked[0].replace('_', ' ')} {as_written(asked[1])}"


def pruned(config: Config) -> bool:
    """Whether entries of the kernels were set to zero."""
    return config["method"] == "prune"


def replays(config: Config) -> bool:
    """Whether the norms of the kernels were set to those of another run."""
    return bool(config.get("replay"))


def method_name(config: Config) -> str:
    """How the network was made small and trained.

    Example:
      >>> method_name({"method": "factorize", "kind": "conv", "variant": "flat", "ratio": 0.1,
      ...              "rank_scale": 0, "energy": 0, "init": "spectral", "decay": "frobenius"})
      'SI + FD'
    """
    kind = _KINDS.get(config["kind"], config["kind"])
    if not arguments.has_factors(config):
        return ", ".join(filter(None, [kind, "pruning" if pruned(config) else "dense"]))
    variant = _VARIANTS.get(config["variant"], config["variant"])
    init = _INITS.get(config["init"], config["init"])
    decay = _DECAYS.get(config["decay"], config["decay"])
    apart = [decay] if decay == "no decay" else []
    joined = " + ".join(word for word in (init, decay) if word and word not in apart)
    if replays(config):
        apart.append("norms replayed")
    return ", ".join(filter(None, [kind, variant, joined or "regular", *apart]))


def method_order(config: Config) -> tuple[int, ...]:
    """A sort key: dense, then regular, SI, FD, SI + FD, and pruning last."""

    def place(key: str, words: Mapping[str, str]) -> int:
        return [*words, config.get(key)].index(config.get(key))

    return (
        *(int(size(config) is not None), int(pruned(config))),
        *(place("kind", _KINDS), place("variant", _VARIANTS)),
        *(place("decay", _DECAYS), place("init", _INITS), int(replays(config))),
    )


def explanations(methods: Iterable[str]) -> list[str]:
    """What the words of some methods' names mean, in a fixed order."""
    words = {word for name in methods for part in name.split(", ") for word in part.split(" + ")}
    return [text for word, text in _EXPLANATIONS.items() if word in words]


def as_written(value: Any) -> str:
    """A value of a config as it is written; 1.0 and 1 are the same, and '' is none."""
    return f"{value:.12g}" if isinstance(value, float) else str(value) or "none"
