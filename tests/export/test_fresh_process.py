"""Files cross from one process to another: with several devices, and where there is no flax."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import quick_compilation

import lowrank_jax as lrj
from lowrank_jax import export

OTHER = """
import sys
sys.modules["flax"] = None
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from lowrank_jax import export

folder = sys.argv[1]
tree = export.load(f"{folder}/model.safetensors")
mesh = Mesh(jax.devices(), ("model",))
placed = jax.device_put(tree, NamedSharding(mesh, PartitionSpec(None, "model")))
assert len(placed["kernel"].vt.sharding.device_set) == 4
export.save(f"{folder}/again.safetensors", placed, export.read_manifest(
    f"{folder}/model.safetensors")["metadata"])

def product(x):
    return x @ placed["dense"]

def constrained(x):
    return jax.lax.with_sharding_constraint(product(x), placed["dense"].sharding)

export.save_program(f"{folder}/program", product, jnp.ones((1, 4)))
try:
    export.save_program(f"{folder}/constrained", constrained, jnp.ones((1, 4)))
except ValueError as error:
    assert "the function is for 4 devices" in str(error), error
else:
    raise AssertionError("a program for several devices")
"""


def test_a_file_goes_through_another_process(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 8)).astype("float32")
    tree = {
        "kernel": lrj.LowRank(u=jnp.asarray(values), vt=jnp.asarray(values.T, jnp.bfloat16)),
        "dense": values,
    }
    export.save(tmp_path / "model.safetensors", tree, {"model": "tiny"})
    imports = {"PYTHONPATH": str(Path(lrj.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path)],
        env={**quick_compilation.environment(4, optimized=False), **imports},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = export.load(tmp_path / "again.safetensors", tree)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, tree))
    manifests = [export.read_manifest(tmp_path / f"{x}.safetensors") for x in ("model", "again")]
    assert manifests[0] == manifests[1]
    x = np.ones((3, 4), "float32")
    product = export.load_program(tmp_path / "program")(x)
    np.testing.assert_allclose(product, x @ values, rtol=1e-6)
