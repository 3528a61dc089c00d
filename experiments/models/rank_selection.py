"""What Cuttlefish and Pufferfish do with the kernels of each of their networks.

Both train a network for some epochs as it is and factorize it then. Cuttlefish measures the stable
ranks of some kernels until all have settled; which kernels it factorizes at all was decided by
hand, from the times of the stacks of a network. These sets are facts of the published code, a
pattern of paths each; they are not always the ones that the papers' text suggests:

    ResNet-18   the two convolutions of the first block of stage 2 are factorized, not tracked
    DeiT        the product behind attention is tracked, not factorized
    ResMLP      the products over tokens are tracked, not factorized

Sources: Wang et al., "Pufferfish", MLSys 2021 (arXiv 2103.03936); Wang et al., "Cuttlefish", MLSys
2023 (arXiv 2305.02538); the code behind both.
"""

from __future__ import annotations

from typing import NamedTuple

from experiments.models import deit, four_stage_resnet, resmlp, vgg


class Stack(NamedTuple):
    """Blocks that are timed, and kept dense or not, as one.

    Attributes:
      name: of the stack.
      blocks: pattern of the paths of its modules.
    """

    name: str
    blocks: str


class RankSelection(NamedTuple):
    """The kernels of a model as they take part in rank selection, by patterns of whole paths.

    Attributes:
      candidates: all that may be factorized: no stem, no head, and no shortcut but a bottleneck's.
      tracked: those of them whose stable ranks must settle before Cuttlefish factorizes.
      kept: those of them that Cuttlefish keeps dense.
      kept_by_pufferfish: those of them that Pufferfish keeps dense.
      stacks: of blocks, from the input to the output.
      normed: those of them that have a norm between their factors, where the model's `factor_norm`
        is set.
    """

    candidates: str
    tracked: str
    kept: str
    kept_by_pufferfish: str
    stacks: tuple[Stack, ...]
    normed: str = ""


_STAGES = tuple(Stack(f"stage_{stage}", rf"stage_{stage}_block_\d") for stage in range(1, 5))

# Cuttlefish's main.py: the convolutions of layer2 to layer4 are factorized, and those from layer2.1
# on are tracked. Pufferfish's network keeps conv1 and layer1.0.
RESNET18 = RankSelection(
    candidates=four_stage_resnet.CONVOLUTIONS,
    tracked=r"stage_(2_block_2|[34]_block_\d)/conv\d/kernel",
    kept=r"stage_1_block_\d/conv\d/kernel",
    kept_by_pufferfish=r"stage_1_block_1/conv\d/kernel",
    stacks=_STAGES,
    normed=four_stage_resnet.CONVOLUTIONS,
)

# At depth 19. conv5 to conv16 are factorized and tracked; Pufferfish keeps conv1 to conv9. What is
# timed are conv2-4, conv5-8 and conv9-16, as in Cuttlefish's cifar_block_benchmark.py.
VGG19 = RankSelection(
    candidates=vgg.FACTORIZED,
    tracked=r"layer_([5-9]|1\d)/conv/kernel",
    kept=r"layer_[2-4]/conv/kernel",
    kept_by_pufferfish=r"layer_[2-9]/conv/kernel",
    stacks=(
        Stack("layers_2_to_4", r"layer_[2-4]"),
        Stack("layers_5_to_8", r"layer_[5-8]"),
        Stack("layers_9_to_16", r"layer_(9|1\d)"),
    ),
    normed=vgg.FACTORIZED,
)

# Of WRN-50-2 as well. Only layer4 is factorized, its downsampling too, whose factors have no norm
# in between.
RESNET50 = RankSelection(
    candidates=four_stage_resnet.WITH_PROJECTIONS,
    tracked=r"stage_4_block_\d/(conv\d|projection)/kernel",
    kept=r"stage_[1-3]_block_\d/(conv\d|projection)/kernel",
    kept_by_pufferfish=r"stage_[1-3]_block_\d/(conv\d|projection)/kernel",
    stacks=_STAGES,
    normed=four_stage_resnet.CONVOLUTIONS,
)

# 12 blocks: all four products of each are tracked, qkv, fc1 and fc2 factorized. Pufferfish
# factorizes all four of blocks 6 to 11. Blocks are alike, so they are one stack.
DEIT = RankSelection(
    candidates=deit.FACTORIZED,
    tracked=deit.FACTORIZED,
    kept=r"layer_\d+/attention/out/kernel",
    kept_by_pufferfish=r"layer_[0-5]/.*/kernel",
    stacks=(Stack("layers", r"layer_\d+"),),
)

# 36 blocks: all three products of each are tracked, fc1 and fc2 factorized. Pufferfish factorizes
# those of blocks 17 to 35.
RESMLP = RankSelection(
    candidates=resmlp.FACTORIZED,
    tracked=resmlp.FACTORIZED,
    kept=r"layer_\d+/linear_tokens/kernel",
    kept_by_pufferfish=r"layer_(\d|1[0-6])/.*/kernel|layer_\d+/linear_tokens/kernel",
    stacks=(Stack("layers", r"layer_\d+"),),
)
