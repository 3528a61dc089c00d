"""The PyTorch twin's training step as a contender.

Nothing that a good PyTorch user would leave out, and nothing that he would not do: eager mode, all
cores; on a GPU channels-last, cuDNN's autotuning, TensorFloat-32 as JAX uses it, and autocast where
bfloat16 is asked for. Batches are ready-made tensors on the device, normalised already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments.benchmark.contenders import Contender
from experiments.benchmark.torch_twin import ResNet, add_frobenius_decay, optimizer, twin

_CLASSES = 10
_BATCHES = 8
_DECAY = 1e-4


class TorchStep:
    """The twin with its optimizer and batches; a call is one turn."""

    def __init__(self, contender: Contender) -> None:
        gpu = contender.platform != "cpu"
        self._device = torch.device("cuda" if gpu else "cpu")
        torch.manual_seed(0)
        torch.set_num_threads(contender.cores)
        if gpu:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        layout = torch.channels_last if gpu else torch.contiguous_format
        network = contender.network
        made: Any = twin(
            network.model, network.depth, network.width, contender.rank_scale, _CLASSES
        )
        self.network: ResNet = made.to(self._device, memory_format=layout)
        self.network.train()
        self._optimizer = optimizer(self.network, _DECAY)
        size = (contender.batch_size, 3, 32, 32)
        self._batches = [
            (
                torch.randn(size, device=self._device).to(memory_format=layout),
                torch.randint(_CLASSES, size[:1], device=self._device),
            )
            for _ in range(_BATCHES)
        ]
        self._steps, self._done = contender.steps, 0
        self._half = contender.precision == "bfloat16"
        self.facts: dict[str, Any] = {
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "multiply_adds": multiply_adds(self.network, self._batches[0][0][:1]),
            "compile_s": None,
            "device": torch.cuda.get_device_name() if gpu else "cpu",
        }

    def __call__(self) -> None:
        loss = torch.zeros((), device=self._device)
        for _ in range(self._steps):
            images, labels = self._batches[self._done % _BATCHES]
            self._done += 1
            loss = self._step(images, labels)
        loss.item()  # Waits for the device, as reading our losses does.

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self._optimizer.zero_grad()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            loss = functional.cross_entropy(self.network(images), labels)
        loss.backward()
        add_frobenius_decay(self.network, _DECAY)
        self._optimizer.step()
        return loss.detach()

    def device_peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None


@torch.no_grad()
def multiply_adds(network: ResNet, image: torch.Tensor) -> int:
    """Those of the convolutions and the head in the forward pass of one image (1, 3, H, W)."""
    found = []

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert isinstance(module.weight, torch.Tensor)
        # Every output value takes one product per entry of its slice of the kernel.
        found.append(output.numel() * module.weight[0].numel())

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    network.eval()  # The running statistics stay as they are.
    network(image)
    network.train()
    for hook in hooks:
        hook.remove()
    return sum(found)


def build(contender: Contender) -> TorchStep:
    """The step of a contender."""
    return TorchStep(contender)
