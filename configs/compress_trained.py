"""Compression after training: the kernels of a finished run are factorized, and what that loses is
made up for by a few more epochs.

Commands:
  python -m experiments.main --config=configs/compress_trained.py:start=RUN
  python -m experiments.main --config=configs/compress_trained.py:start=RUN,energy=0.95
  python -m experiments.main --config=configs/compress_trained.py:start=RUN,ratio=0.1,epochs=5
  python -m experiments.main --config=configs/compress_trained.py:start=RUN,rank_scale=0.111
  python -m experiments.main --config=configs/compress_trained.py:start=RUN,method=prune,ratio=0.1

RUN is the folder of a finished run, dense, factorized (its factors are merged first) or pruned. It
has to stay where it is until the new run is finished; a run that is continued looks at it for the
ranks of its kernels, and has everything else in its own folder.

The size is one of `energy` (of the squared singular values of each kernel), `ratio` (of the dense
network's parameters) and `rank_scale`; without any, energy=0.9, which compresses a network that has
been trained for long, and may keep all of one that has not. Truncating the singular values at
that size is the best approximation of each kernel in the Frobenius norm (Eckart and Young 1936).

From RUN come the model, the data, the protocol, the augmentation, the batch size, the momentum and
the weight decay, and also the seed and `validation`: with these the same images are held out, so
that none of them has been trained on. To train with another seed, use a RUN of that seed, or
validation=0. Fine-tuning has a short recipe of its own: a tenth of RUN's epochs, at least two; a
tenth of its learning rate, and a tenth of that from the middle on; no warm-up; Frobenius decay.
Every key of `configs/base.py` is an argument that overrides.

Accuracy and loss before, after factorizing and after fine-tuning are printed, and written to the
record of step 0 in metrics.jsonl (start_test_accuracy, test_accuracy, …) and to result.json.

Cost: a tenth of RUN's time.
"""

from ml_collections import ConfigDict

from configs import base
from experiments import arguments, config_keys
from experiments.errors import RunError
from experiments.finished_run import FinishedRun

# What the new run has from the one that it starts from.
_TAKEN = (
    *("task", "seed", "protocol", "validation", "model", "kind", "data", "augment"),
    *("batch_size", "accumulate_steps", "momentum", "weight_decay", "precision"),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """The network of a finished run at nine tenths of its kernels' energy, fine-tuned."""
    asked = base.get_config(arg)
    if not asked.start:
        raise RunError(
            "name the finished run that is to be compressed: "
            "--config=configs/compress_trained.py:start=RUN"
        )
    trained = FinishedRun.read(asked.start).config
    config = base.get_config()
    config.name = "compress_trained"
    config.update({key: trained[key] for key in _TAKEN})
    if not any(asked[size] for size in config_keys.SIZES):
        config.energy = 0.9
    config.epochs = max(2, round(trained.epochs / 10))
    config.learning_rate = trained.learning_rate / 10
    config.milestones = (0.5,)
    config.warmup_epochs = 0
    return arguments.apply(config, arg)
