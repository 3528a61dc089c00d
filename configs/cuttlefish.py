"""Ranks without tuning: networks that begin dense and become low rank while they train, beside
those that are dense or low rank all the time. "Cuttlefish: Low-Rank Model Training without All the
Tuning" (Wang et al., MLSys 2023, arXiv 2305.02538) and "Pufferfish" (Wang, Agarwal, Papailiopoulos,
MLSys 2021, arXiv 2103.03936).

Commands:
  python -m experiments.main --config=configs/cuttlefish.py
  python -m experiments.main --config=configs/cuttlefish.py:method=pufferfish,seed=2
  python -m experiments.main --config=configs/cuttlefish.py:model=vgg19,data=cifar100
  python -m experiments.main --config=configs/cuttlefish.py:kept=published,metric=stable
  python -m experiments.main --config=configs/cuttlefish.py:model=resnet50
  python -m experiments.main --config=configs/cuttlefish.py:runlocal

Arguments: every key of `configs/base.py`, above all those of `selection` and `width`, and
  method     full         dense to the end
             pufferfish   a quarter of full rank after 80 of 300 epochs, in the published layers
             cuttlefish   when the stable ranks have settled, at the ranks that they say, from the
                          first stack on whose factors are worth their time
             si_fd        low rank from the start: spectral initialization and Frobenius decay
  model      resnet18 and vgg19, with their published recipe for CIFAR; on imagenet2012
             (docs/large_data.md says how it is prepared), with the constants for it of rank
             selection: resnet50 and wide_resnet50, with their published recipe but for label
             smoothing; deit_small, deit_base and resmlp36, with no more of theirs (AdamW,
             RandAugment, mixup) than that
`runlocal=True` is a run of a minute on embedded data, to see that everything works.

Extra batch norms and Frobenius decay exclude each other; which of them a network has is as
published: pufferfish's ResNet-18 has the norms, of cuttlefish's networks ResNet-18 has the decay
and all others for images the norms. Weight decay is of kernels alone.

Cost: 300 epochs of CIFAR are work for an accelerator. A quarter-width twin on embedded data is made
for CPU cores (`configs/sweeps/rank_selection_small.py` says how long it takes).
Expected result: `python -m experiments.report RUN...` makes the tables from finished runs.
"""

from ml_collections import ConfigDict

from configs import base
from experiments import arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """Cuttlefish's ResNet-18 on CIFAR-10."""
    config = base.get_config()
    config.name = "cuttlefish"

    # As published for CIFAR: large batches, and a learning rate that warms up for five epochs, at
    # the beginning and after the switch.
    config.epochs = 300
    config.batch_size = 1024
    config.learning_rate = 0.8
    config.warmup = "linear"
    config.warmup_epochs = config.selection.rewarmup_epochs = 5
    config.warmup_learning_rate = 0.1
    config.weight_decay = 1e-4
    config.decay_vectors = False
    _of_cifar("resnet18")(config)
    _cuttlefish(config)
    return arguments.apply(
        config,
        arg,
        presets={
            "model": {
                "resnet18": _of_cifar("resnet18"),
                "vgg19": _of_cifar("vgg", depth=19),
                "resnet50": _of_imagenet("resnet50"),
                "wide_resnet50": _of_imagenet("wide_resnet50"),
                "deit_small": _of_imagenet("deit", d_model=384, heads=6),
                "deit_base": _of_imagenet("deit", d_model=768, heads=12),
                "resmlp36": _of_imagenet("resmlp"),
            },
            "method": {
                "full": _full,
                "pufferfish": _pufferfish,
                "cuttlefish": _cuttlefish,
                "si_fd": _si_fd,
            },
            "runlocal": _runlocal,
        },
    )


def _of_cifar(name: str, **fields: int) -> arguments.Preset:
    def preset(config: ConfigDict) -> None:
        config.model = ConfigDict({"name": name, **fields, "width": 1.0})
        config.data.name = "cifar10"
        config.selection.preset = "cifar"
        _as_published(config)

    return preset


def _of_imagenet(name: str, **fields: int) -> arguments.Preset:
    def preset(config: ConfigDict) -> None:
        transformer = name in _TRANSFORMERS
        config.model = ConfigDict({"name": name, **fields, **({} if transformer else _WIDTH)})
        config.data.name = "imagenet2012"
        config.augment.crop = 0  # Photographs are cropped as a part of their area.
        config.eval_batch_size = 256
        if not transformer:
            config.epochs, config.batch_size, config.learning_rate = 90, 256, 0.1
            config.milestones = (1 / 3, 2 / 3, 8 / 9)
            config.warmup_epochs = config.selection.rewarmup_epochs = 0
        config.selection.preset = "vit" if transformer else "imagenet"
        if transformer:
            config.layout = "as_written"  # There is nothing to convolve.
        _as_published(config)

    return preset


_TRANSFORMERS = ("deit", "resmlp")
_WIDTH = {"width": 1.0}


def _full(config: ConfigDict) -> None:
    """Dense."""
    config.method, config.rank_scale = "factorize", 0.0
    _as_published(config)


def _pufferfish(config: ConfigDict) -> None:
    """A fixed share after a fixed share of the epochs, in the published layers."""
    config.method, config.rank_scale = "pufferfish", 0.0
    config.selection.kept = "published"
    _as_published(config)


def _cuttlefish(config: ConfigDict) -> None:
    """Ranks, and the epoch of the switch, by stable ranks; layers by their times."""
    config.method, config.rank_scale = "cuttlefish", 0.0
    config.selection.kept = "profile"
    _as_published(config)


def _si_fd(config: ConfigDict) -> None:
    """Low rank from the start, at the rank scale that is published for ResNet-18."""
    config.method, config.rank_scale = "factorize", 0.08
    _as_published(config)


def _as_published(config: ConfigDict) -> None:
    """The kind of weight, and Frobenius decay or norms between factors, of method and model."""
    name, low_rank_always = config.model.name, bool(config.rank_scale)
    if name in _TRANSFORMERS:
        config.kind = "linear"
    else:
        config.kind = "conv" if low_rank_always else "channel"
    frobenius = low_rank_always or (config.method == "cuttlefish" and name == "resnet18")
    normed = {"pufferfish": ("resnet18",), "cuttlefish": ("vgg", "resnet50", "wide_resnet50")}
    config.decay = "frobenius" if frobenius else "plain"
    config.factor_norm = name in normed.get(config.method, ())


def _runlocal(config: ConfigDict) -> None:
    """A narrow network and a few short epochs on digits, which need no download."""
    config.name = "cuttlefish_local"
    config.data.name = "digits"
    if "width" in config.model:
        config.model.width = 0.125
    config.epochs, config.batch_size = 12, 64
    config.learning_rate, config.warmup_learning_rate = 0.1, 0.02
    config.warmup_epochs = config.selection.rewarmup_epochs = 1
    config.selection.window = config.selection.tail = 3
    config.selection.threshold = 0.5
    config.augment.crop = 1
    config.augment.flip = False  # A mirrored digit is another sign.
