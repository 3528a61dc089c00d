"""Every key of a config: its type, its default, what it means. The other configs refine this one.

A key that is left at None has a type all the same, and gets its value from the protocol (see
`experiments.arguments.settle`). What a key accepts is listed in `experiments.accepted_values`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments import arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The shared base: a dense ResNet-20 on CIFAR-10."""
    config = ConfigDict()

    # The run. It goes to `workdir`, or where that is empty to a folder of its own under runs/.
    config.name = "base"
    config.task = "classification"
    config.workdir = ""
    # A finished run whose final network is the start, instead of a random one ('' = random); one of
    # another task gives the parts that both networks have, such as the encoder.
    config.start = ""
    config.seed = 1
    # ours: a validation split is held out, the data set's own statistics, full batches.
    # published: no split, the statistics of the model's published code, and the partial last batch
    # of an epoch is kept.
    config.protocol = "ours"

    # The dense model; `width` multiplies its channel counts (0.25 is a quarter-width twin).
    # resnet: depth 6n+2 (20, 32, 44, 56, 110); 16, 32, 64 channels, shortcuts without parameters.
    # projection_resnet: the same with 64, 128, 256 channels and 1x1 convolutions as shortcuts.
    # vgg: depth 11, 13, 16 or 19.
    # wide_resnet: depth 6n+4 (28); 160, 320, 640 channels, so that width 1 is WRN-28-10.
    # resnet18 (small images), resnet50, wide_resnet50 (WRN-50-2); deit and resmlp (d_model, layers,
    # patch_size) have no width.
    config.model = ConfigDict({"name": "resnet", "depth": 20, "width": 1.0})

    # How the network gets small. factorize: its kernels are stored as factors. prune: the smallest
    # entries of the same kernels are set to zero during training (needs a ratio; there are no
    # factors, so that init and decay mean what they do for a dense network). pufferfish,
    # cuttlefish: the network begins dense and becomes low rank while it trains; see `selection`.
    config.method = "factorize"
    # How large it becomes, one of three; all at 0 keep it dense.
    # rank_scale: below 1 is low rank, 1 full rank, above 1 wide.
    # ratio: the share of the dense network's parameters, all of them counted.
    # energy: the share of each kernel's squared singular values; for trained kernels.
    config.rank_scale = 0.0
    config.ratio = 0.0
    config.energy = 0.0
    # What is factorized. conv: the kernels of convolutions. tensor_train, tucker: convolutions
    # become depthwise-separable and their pointwise kernels tensors; wide_resnet alone has these.
    # linear, in models of text: feed-forward kernels, and of the Transformer for translation the
    # embeddings and the output. projections, in language models and the classifiers made of them:
    # feed-forward kernels and the projections of attention.
    config.kind = "conv"
    # flat: two factors, u @ vt. deep: a square matrix in between, u @ m @ vt.
    config.variant = "flat"
    config.init = "spectral"
    # What spectral initialization does with ranks beyond the kernel's own: `complement` keeps the
    # product and a live gradient; `zero` pads with directions that never train, as published.
    config.overcomplete = "complement"
    # Whether a batch norm lies between the factors of each convolution (the published "extra batch
    # norm"; not together with Frobenius decay, which is of the product of the factors).
    config.factor_norm = False

    # When a network that begins dense becomes low rank, and at which ranks. It does so between two
    # epochs, by the singular value decomposition of its trained kernels.
    # epoch: pufferfish trains so many epochs dense, cuttlefish at most so many. 0: 80 of 300 epochs
    # are the share of pufferfish, and half of them that of cuttlefish.
    # fraction: pufferfish takes this share of full rank; and it is what kernels are timed at.
    # preset: the constants of cuttlefish: cifar, imagenet or vit, and the same with _reference,
    # which counts epochs and truncates stable ranks as the published programs do.
    # window, tail, threshold: of the test whether stable ranks have settled (0: of the preset).
    # metric: scaled_stable, stable (without its scale) or accumulative (see
    # lowrank_jax/rank_selection/). minimum_fraction: no rank is below this share of full rank
    # (None: of the preset). multiple_of: ranks are rounded up to multiples of it.
    # kept: which kernels stay dense beside those that the model never factorizes: profile (the
    # first stacks, until one is faster by `speed_up` with factors; cuttlefish alone), published
    # (what the papers keep in this model), none, or a pattern for whole paths.
    # moments: what the optimizer remembers of a kernel is forgotten (reset) or taken to its factors
    # (project).
    # rewarmup_epochs: the learning rate warms up once more, as at the beginning.
    # recalibration_batches: so many batches are seen by batch norm before training goes on.
    config.selection = ConfigDict(
        {
            "epoch": 0,
            "fraction": 0.25,
            "preset": "cifar",
            "window": 0,
            "tail": 0,
            "threshold": 0.0,
            "metric": "scaled_stable",
            "minimum_fraction": placeholder(float),
            "multiple_of": 1,
            "kept": "profile",
            "speed_up": 1.5,
            "moments": "reset",
            "rewarmup_epochs": 0,
            "recalibration_batches": 0,
        }
    )

    # Regularization, all with the coefficient `weight_decay`. On what is not factorized it is plain
    # weight decay in every case; on factorized kernels it is
    # none: nothing. plain: weight decay of each factor. frobenius: decay of the factors' product.
    # crs: weight decay of each factor, scaled by the ratio of compressed to dense parameters.
    config.decay = "frobenius"
    config.weight_decay = 1e-4
    # False: what has one axis (biases, the scales of norms) is not decayed.
    config.decay_vectors = True
    # The coefficient of Frobenius decay, where it is another one than `weight_decay` (0: the same).
    config.frobenius_decay = 0.0
    # Attention in which queries and keys (qk) or outputs and values (ov) of a head are initialized
    # spectrally, and Frobenius-decayed, as the products that they only occur in: none, qk, ov,
    # qk_ov.
    config.products = ConfigDict({"init": "none", "decay": "none"})
    # Where decay comes in. coupled: it is part of the gradient, before clipping and momentum.
    # decoupled: it is added to the step that these give. published: Frobenius decay is coupled, and
    # plain decay decoupled, as in the published Transformer experiments.
    config.decay_position = "coupled"
    # A finished run with record_norms=True, alike but for its decay: after each step the factorized
    # kernels are rescaled to the norms that they had there ('': none).
    config.replay = ""

    # Data, by the arguments of `experiments.data.lookup.load`. `source` restricts where it is
    # looked for; `dir` and `tfds_dir` say where ('' = in the usual places); download=never keeps
    # off the network.
    config.data = ConfigDict(
        {"name": "cifar10", "source": "auto", "download": "auto", "dir": "", "tfds_dir": ""}
    )
    # The fraction of the training set that is held out. 0: train on everything and report the
    # final epoch. None: 0.1 under protocol=ours, 0 under published.
    config.validation = placeholder(float)
    # Training images are zero-padded by `crop` pixels and cropped back at random; flipped or not;
    # and a square of side `cutout` around a random pixel is blanked (0: none).
    config.augment = ConfigDict({"crop": 4, "flip": True, "cutout": 0})

    # Optimization: SGD with momentum, or Adam or LAMB, whose b1 it then is. Gradients, with the
    # decay that is part of them, are scaled down to a global norm of clip_norm (0: not). The length
    # of a run is `epochs`, or `steps` where that is not 0.
    config.optimizer = "sgd"
    config.nesterov = False
    config.clip_norm = 0.0
    config.epochs = 200
    config.steps = 0
    config.batch_size = 128
    config.learning_rate = 0.1
    config.momentum = 0.9
    # milestones: the learning rate is multiplied by `milestone_factor` at the start of epoch
    # int(fraction * epochs), or at step int(fraction * steps), for each fraction in `milestones`.
    # inverse_sqrt: it goes from `warmup_learning_rate` to `learning_rate` within `warmup_steps`,
    # and falls with the square root of the step from there on.
    # linear: it does the same, and falls in a straight line to 0 at the end of the run.
    config.schedule = "milestones"
    config.warmup_steps = 1
    config.milestones = (0.5, 0.75)
    config.milestone_factor = 0.1
    # With milestones the first epochs run at a smaller rate. None: one epoch for a ResNet from
    # depth 56 on, else none. constant: it is `warmup_learning_rate`; linear: it rises from there
    # to `learning_rate`, by the same amount after each of them.
    config.warmup_epochs = placeholder(int)
    config.warmup = "constant"
    config.warmup_learning_rate = 0.01
    # The batch is taken in this many equal micro-batches, one after the other, and their gradients
    # are averaged; batch norm sees one micro-batch at a time.
    config.accumulate_steps = 1
    # Batch norm takes the statistics of so many equal parts of a (micro-)batch by themselves. 1: of
    # all of it, on however many devices. With as many parts as devices nothing has to be summed
    # over these; it is another network that is trained, on any mesh the same.
    config.batch_norm_parts = 1
    # What products and activations are computed in, float32 or bfloat16. Parameters, batch
    # statistics, logits, decay and spectral initialization are float32 in any case.
    config.precision = "float32"

    # Execution. None of these changes what is computed.
    # Processes that decode images which are read as they are used, as those of imagenet2012 are;
    # 0: threads of the run itself, one for each core. See docs/large_data.md.
    config.data_workers = 0
    config.eval_batch_size = 500
    # An upper bound on training steps per call into the device. None: 16; 1 where batches of
    # several shapes take turns; on a CPU fewer where 16 would take long, and 1 where images are
    # stored as written.
    config.steps_per_dispatch = placeholder(int)
    # How images are stored inside compiled functions: as_written, or batch_minor, which is a
    # multiple faster on a CPU. auto: batch_minor on a single CPU device.
    config.layout = "auto"
    # Whether a factorized kernel is applied as its factors or composed first: measure (both are
    # timed when a run begins, once for each layer shape, where it is not obvious), or count (what
    # costs fewer multiply-adds).
    config.forms = "measure"
    # True: the backward pass computes the inside of residual blocks again, which costs time and is
    # meant to save memory; measured on a CPU it does not.
    config.remat = False
    # A folder in which JAX keeps compiled programs for later runs. '': not used, or what the
    # environment says; see experiments/compilation_cache.py.
    config.compilation_cache = ""
    # First and last step of a profiler trace, written to RUN/profile: two whole numbers, counted
    # from 1, given as --config.profile_steps=10,20. (): none.
    config.profile_steps = ()
    config.checkpoint_every_epochs = 1
    config.keep_checkpoints = 2
    # Norms, ranks and spectra of the kernels are measured at the end of the dispatch in which this
    # number of steps, or a multiple of it, is reached; less often where all of it would take more
    # than this share of the time. At the beginning and at the end they are measured in any case.
    config.diagnostics_every = 100
    config.diagnostics_share = 0.03
    # The norm of each factorized kernel after each step is written to norms.npz, for replay.
    config.record_norms = False
    # At the end the factors are merged into the dense network that they stand for; it is compared
    # with them on the test images, and written to compact.safetensors.
    config.merge = False
    # The lower end of the final test accuracy that this config reaches (a fraction), printed at
    # the start of a run. 0 prints nothing.
    config.expected_accuracy = 0.0
    # Devices per mesh axis, such as data:2,fsdp:4. `data` and `fsdp` split batches, `fsdp` and
    # `tensor` parameters; -1 takes all that the other axes leave.
    config.mesh = "data:-1"

    return arguments.apply(config, arg)
