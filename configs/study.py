"""What the studies of why Frobenius decay works have in common: their network, and a short form."""

from ml_collections import ConfigDict

from configs import base


def resnet20(name: str) -> ConfigDict:
    """ResNet-20 on CIFAR-10 at rank scale 1/9, as in the published studies."""
    config = base.get_config()
    config.name = name
    config.model.depth = 20
    config.rank_scale = 0.111
    return config


def runlocal(config: ConfigDict) -> None:
    """204 steps of ResNet-20 on embedded images, which need no download; measured every 20."""
    config.name += "_local"
    config.data.name = "fashion_small"
    config.model.depth = 20
    # A tenth of the 5000 images is held out: 51 steps an epoch, of batches that eight can share.
    config.batch_size = 88
    config.epochs = 4
    config.diagnostics_every = 20
