"""Checkpoints of the paper's code: a network computed from its state dict in NumPy, and names."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from random_variables import factorized_shapes

import lowrank_jax as lrj
from configs import cifar_resnet, tensor
from experiments import models
from experiments.errors import RunError
from experiments.reference_checkpoint import import_state_dict, module_names
from lowrank_jax.tree import kernels


def config(argument: str) -> ConfigDict:
    """A ResNet-8 for digits."""
    return cifar_resnet.get_config(f"runlocal,{argument}")


def resnet8_state_dict(scale: float, deep: bool) -> dict[str, np.ndarray]:
    """A state dict as the paper's code would have it, of random numbers."""
    rng = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def norm(name: str, features: int) -> None:
        state[f"{name}.weight"], state[f"{name}.running_var"] = 0.5 + rng.random((2, features))
        state[f"{name}.bias"], state[f"{name}.running_mean"] = rng.normal(size=(2, features)) / 5
        state[f"{name}.num_batches_tracked"] = np.array(3)

    def conv(name: str, n_in: int, n_out: int) -> None:
        rank = max(round(scale * n_out * 3), 1)
        state[f"{name}.U"] = rng.normal(size=(n_out * 3, rank)) / np.sqrt(3 * rank)
        state[f"{name}.VT"] = rng.normal(size=(rank, n_in * 3)) / np.sqrt(n_in * 3 / 2)
        if deep:
            state[f"{name}.M"] = np.eye(rank) + 0.1 * rng.normal(size=(rank, rank))

    state["conv1.weight"] = rng.normal(size=(16, 3, 3, 3)) / np.sqrt(27 / 2)
    norm("bn1", 16)
    for stage, (n_in, n_out) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
        conv(f"layer{stage}.0.conv1", n_in, n_out)
        norm(f"layer{stage}.0.bn1", n_out)
        conv(f"layer{stage}.0.conv2", n_out, n_out)
        norm(f"layer{stage}.0.bn2", n_out)
    state["linear.weight"], state["linear.bias"] = rng.normal(size=(10, 64)), rng.normal(size=10)
    return {name: np.asarray(value, np.float32) for name, value in state.items()}


def resnet8(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The paper's ResNet on images (N, C, H, W), from its state dict, in float64."""
    state = {name: np.asarray(value, np.float64) for name, value in state.items()}

    def convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        return np.einsum("nihwyx,oiyx->nohw", windows[:, :, ::stride, ::stride], weight)

    def conv(name: str, x: np.ndarray, stride: int) -> np.ndarray:
        U, VT = state[f"{name}.U"], state[f"{name}.VT"]
        product = U @ state.get(f"{name}.M", np.eye(len(VT))) @ VT
        n_out, n_in = len(U) // 3, VT.shape[1] // 3
        return convolve(x, product.reshape(n_out, 3, n_in, 3).swapaxes(1, 2), stride)

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        def vector(which: str) -> np.ndarray:
            return state[f"{name}.{which}"][:, None, None]

        x = (x - vector("running_mean")) / np.sqrt(vector("running_var") + 1e-5)
        return x * vector("weight") + vector("bias")

    x = np.maximum(norm("bn1", convolve(x, state["conv1.weight"], 1)), 0)
    for stage in (1, 2, 3):
        block, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        y = np.maximum(norm(f"{block}.bn1", conv(f"{block}.conv1", x, stride)), 0)
        y = norm(f"{block}.bn2", conv(f"{block}.conv2", y, 1))
        added = (y.shape[1] - x.shape[1]) // 2
        skipped = np.pad(x[:, :, ::stride, ::stride], ((0, 0), (added, added), (0, 0), (0, 0)))
        x = np.maximum(y + skipped, 0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("deep", [False, True])
def test_an_imported_resnet_computes_what_the_reference_does(deep: bool) -> None:
    state = resnet8_state_dict(0.1, deep)
    settings = config("rank_scale=0.1" + deep * ",variant=deep")
    variables = import_state_dict(settings, {f"module.{name}": x for name, x in state.items()})
    model = models.build(settings.model, num_classes=10)
    images = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda v, x: model.apply(v, x, False))(variables, images)
    expected = resnet8(state, images.transpose(0, 3, 1, 2))
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def layer(name: str, factorized: bool) -> set[str]:
    return {f"{name}.{one}" for one in (("U", "VT") if factorized else ("weight",))}


def norm(name: str) -> set[str]:
    return {f"{name}.{one}" for one in ("weight", "bias", "running_mean", "running_var")}


def names_of_projection_resnet(factorized: bool) -> set[str]:
    """Depth 14: two blocks a stage."""
    names = {"conv1.weight", "linear.weight", "linear.bias", *norm("bn")}
    for stage in (1, 2, 3):
        for block in (f"layer{stage}.0", f"layer{stage}.1"):
            for at in (1, 2):
                names |= layer(f"{block}.conv{at}", factorized) | norm(f"{block}.bn{at}")
        if stage > 1:
            # Factorizing it replaces the nn.Sequential around it.
            inside = "" if factorized else ".0"
            names |= layer(f"layer{stage}.0.downsample{inside}", factorized)
            names |= norm(f"layer{stage}.0.bn3")
    return names


def names_of_wide_resnet(factorized: bool) -> set[str]:
    """Depth 16: two blocks a group, and a projection in the first one of each."""
    names = {"conv1.weight", "fc.weight", "fc.bias", *norm("bn1")}
    for group in (1, 2, 3):
        for block in (f"block{group}.0.layer.0", f"block{group}.0.layer.1"):
            for at in (1, 2):
                inside = "" if factorized else ".conv"
                names |= layer(f"{block}.conv{at}{inside}", factorized) | norm(f"{block}.bn{at}")
        names |= layer(f"block{group}.0.layer.0.convShortcut", factorized)
    return names


def names_of_vgg(factorized: bool) -> set[str]:
    """Depth 19, as a list of modules like the one that `make_layers` fills."""
    modules: list[str] = []
    stages = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4]
    for channels in stages:
        modules += ["pool"] if channels == "M" else ["conv", "norm", "relu"]
    names = {"classifier.weight", "classifier.bias"}
    for index, module in enumerate(modules):
        if module == "conv":
            names |= layer(f"feature.{index}", factorized and index > 0)
        elif module == "norm":
            names |= norm(f"feature.{index}")
    assert {"feature.31.weight", "feature.47.weight"} <= names  # Norms, as the paper's code has.
    return names


MODELS = {
    "projection_resnet": (names_of_projection_resnet, 14),
    "wide_resnet": (names_of_wide_resnet, 16),
    "vgg": (names_of_vgg, 19),
}


@pytest.mark.parametrize("factorized", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_names_as_pytorch_builds_them(name: str, factorized: bool) -> None:
    expected, depth = MODELS[name]
    fields = {"name": name, "depth": depth, "width": 0.25}
    model = models.build(fields, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
    if factorized:
        variables = factorized_shapes(name, model, images)
    modules = module_names(fields, variables["params"])
    theirs = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    theirs |= {"mean": "running_mean", "var": "running_var"}
    found: set[str] = set()
    leaves = [kernels(variables[collection]) for collection in ("params", "batch_stats")]
    for path, leaf in [item for one in leaves for item in one.items()]:
        module, _, ours = path.rpartition("/")
        found |= (
            layer(modules[module], True)
            if lrj.is_factorized(leaf)
            else {f"{modules[module]}.{theirs[ours]}"}
        )
    assert found == expected(factorized)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rank_scale=0.5", r"layer1\.0\.conv1\.VT and has shape .* another rank"),
        ("rank_scale=0", r"layer1\.0\.conv1\.weight is not in the state dict"),
        ("rank_scale=0.1,variant=deep", r"layer1\.0\.conv1\.M is not in the state dict"),
        (
            "rank_scale=0.1,depth=14",
            r"layer1\.1\.bn1\.running_mean is not in the state dict, which has nothing",
        ),
        (
            "rank_scale=0.1,data=cifar100",
            r"head/bias is made from linear\.bias .* expected \(100,\)",
        ),
    ],
)
def test_a_state_dict_of_another_network_is_refused(argument: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        import_state_dict(config(argument), resnet8_state_dict(0.1, deep=False))


def test_what_the_reference_has_in_another_form_is_refused() -> None:
    with pytest.raises(RunError, match="kind=tucker: only factorized convolutions"):
        import_state_dict(tensor.get_config("kind=tucker,runlocal=True"), {})
    with pytest.raises(RunError, match=r"model.name='tiny' is no network of the paper's code"):
        module_names({"name": "tiny"}, {})
