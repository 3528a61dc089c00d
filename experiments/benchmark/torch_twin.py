"""The project's ResNets in plain PyTorch, dense or factorized, as a good PyTorch user writes them.

The same layers with the same parameters as `experiments/models/resnet.py` (shortcut without
parameters) and `experiments/models/projection_resnet.py` (1 x 1 convolution and batch norm at the
transitions); attribute names are those of the Flax parameters. A factorized convolution is two,

    1 x kw to r channels, stride (1, s);   then kh x 1 to all channels, stride (s, 1),

with r = max(1, round(rank_scale * out * kh)), and no Python beyond that. Source: Khodak et al.,
ICLR 2021 (arXiv 2105.01029), section 2 and its code.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class FactoredConv2d(nn.Module):
    """A zero-padded convolution of odd `size` as a horizontal one and then a vertical one.

    Its dense kernel is ``W[o, i, h, w] = sum_r second[o, r, h, 0] first[r, i, 0, w]``.
    """

    def __init__(
        self, channels: int, features: int, size: int, stride: int, rank_scale: float
    ) -> None:
        super().__init__()
        rank = max(1, round(rank_scale * features * size))
        reach = size // 2
        self.first = nn.Conv2d(channels, rank, (1, size), (1, stride), (0, reach), bias=False)
        self.second = nn.Conv2d(rank, features, (size, 1), (stride, 1), (reach, 0), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def convolution(
    channels: int, features: int, size: int, stride: int, rank_scale: float
) -> nn.Module:
    """A convolution, factorized unless `rank_scale` is 0."""
    if rank_scale:
        return FactoredConv2d(channels, features, size, stride, rank_scale)
    return nn.Conv2d(channels, features, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(
        self, channels: int, features: int, stride: int, rank_scale: float, projects: bool
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels, features, 3, stride, rank_scale)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = convolution(features, features, 3, 1, rank_scale)
        self.norm2 = nn.BatchNorm2d(features)
        self.stride, self.added = stride, features - channels
        self.projects = projects and self.added > 0
        if self.projects:
            self.projection = convolution(channels, features, 1, stride, rank_scale)
            self.projection_norm = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.projects:
            x = self.projection_norm(self.projection(x))
        elif self.added:
            half = self.added // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, half, self.added - half))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes).

    Args:
      depth: 6n + 2.
      channels: of the first stage; the second and third have two and four times as many.
      projects: whether shortcuts between stages are 1 x 1 convolutions with batch norm.
      rank_scale: of every convolution but the stem; 0 is the dense network.
    """

    def __init__(
        self, depth: int, channels: int, projects: bool, rank_scale: float, classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        blocks: list[nn.Module] = []
        before = channels
        for stage in range(3):
            features = channels * 2**stage
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(before, features, stride, rank_scale, projects))
                before = features
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem_norm(self.stem(images)))
        return self.head(self.blocks(x).mean(dim=(2, 3)))


def twin(model: str, depth: int, width: int, rank_scale: float, classes: int) -> ResNet:
    """The twin of the model that `experiments.models` has under the name `model`."""
    projects = model == "projection_resnet"
    return ResNet(depth, (64 if projects else 16) * width, projects, rank_scale, classes)


def optimizer(network: ResNet, decay: float) -> torch.optim.SGD:
    """SGD with momentum; plain decay on all but factors, which `add_frobenius_decay` is for."""
    layers = [module for module in network.modules() if isinstance(module, FactoredConv2d)]
    factors = [parameter for layer in layers for parameter in layer.parameters()]
    held = {id(factor) for factor in factors}
    others = [parameter for parameter in network.parameters() if id(parameter) not in held]
    groups = [
        {"params": others, "weight_decay": decay},
        {"params": factors, "weight_decay": 0.0},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=0.1, momentum=0.9)


@torch.no_grad()
def add_frobenius_decay(network: nn.Module, decay: float) -> None:
    """Adds the gradient of ``decay / 2 ||U V^T||_F^2`` to the gradient of every pair of factors.

    With ``U (out kh, r)`` and ``V^T (r, in kw)``: ``U (V^T V)`` and ``(U^T U) V^T``.
    """
    for module in network.modules():
        if not isinstance(module, FactoredConv2d):
            continue
        first, second = module.first.weight, module.second.weight
        vt = first.flatten(1)
        u = second.squeeze(3).transpose(1, 2).flatten(0, 1)
        along_u = (u @ (vt @ vt.T)).unflatten(0, (second.shape[0], second.shape[2]))
        for factor, term in (
            (first, ((u.T @ u) @ vt).view_as(first)),
            (second, along_u.transpose(1, 2).unsqueeze(3)),
        ):
            if factor.grad is not None:
                factor.grad.add_(term, alpha=decay)
