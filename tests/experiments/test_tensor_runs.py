"""A run of a tensor kind as a whole: trained, then evaluated factored and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from flax import linen as nn

import lowrank_jax as lrj
from configs import tensor
from experiments import evaluate, models, run_folder
from experiments.models.wide_resnet import Block
from experiments.restored_run import RestoredRun
from experiments.train import train_and_evaluate
from lowrank_jax.linen import Conv, Dense


class OneBlock(nn.Module):
    """The first layer, one block and the head of a wide ResNet."""

    num_classes: int
    depth: int
    width: float
    separable: bool = False
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = Conv(8, (3, 3), dtype=self.dtype, name="stem")(images)
        x = Block(16, stride=2, separable=self.separable, dtype=self.dtype, name="block_1")(
            x, train
        )
        return Dense(self.num_classes, name="head")(x.mean((1, 2)).astype("float32"))


@pytest.mark.slow
@pytest.mark.usefixtures("compilation_cache")
def test_a_run_and_its_merged_network_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = models.find("wide_resnet")
    monkeypatch.setitem(models.MODELS, "wide_resnet", entry._replace(build=OneBlock))
    config = tensor.get_config(
        "kind=tucker,runlocal=True,rank_scale=0.5,epochs=1,batch_size=256,layout=batch_minor"
    )
    run = train_and_evaluate(config, tmp_path / "run", lambda line: None)
    found = evaluate.evaluate(RestoredRun.read(run))
    assert found["logit_difference"] < 1e-5
    assert found["factored"]["parameters"] < found["merged"]["parameters"]
    kinds = {row.path: row.kind for row in run_folder.read_table(run).rows}
    assert kinds == {f"block_1/conv{at}/pointwise/kernel": lrj.Tucker for at in (1, 2)}
