"""State dicts of PyTorch against the layers' definitions, entry by entry, and PyTorch itself."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowrank_jax as lrj
from lowrank_jax.torch_state_dict import from_state_dict, low_rank, spatial_low_rank

OUT, IN, RANK = 4, 3, 2
NAMES = {"stem": "conv0", "block/conv": "layer.0.conv", "block/norm": "layer.0.bn", "head": "fc"}


def numbers(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def oihw_of_factors(U, VT, M, kh, kw):
    """The kernel that the paper's convolution applies, from its definition."""
    product = M @ VT
    kernel = np.zeros((OUT, IN, kh, kw))
    for o, i, h, w in np.ndindex(kernel.shape):
        kernel[o, i, h, w] = sum(
            U[o * kh + h, r] * product[r, i * kw + w] for r in range(VT.shape[0])
        )
    return kernel


def hwio(kernel):
    """The same kernel in our order, entry by entry."""
    out, n_in, kh, kw = kernel.shape
    found = np.zeros((kh, kw, n_in, out))
    for o, i, h, w in np.ndindex(kernel.shape):
        found[h, w, i, o] = kernel[o, i, h, w]
    return found


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("kh", "kw"), [(3, 3), (1, 1), (3, 2), (1, 5)])
def test_factorized_convolution(kh, kw, deep):
    U, VT, M = numbers(OUT * kh, RANK), numbers(RANK, IN * kw), numbers(RANK, RANK)
    weight = spatial_low_rank(U, VT, M if deep else None, kernel_size=(kh, kw))
    expected = hwio(oihw_of_factors(U, VT, M if deep else np.eye(RANK), kh, kw))
    np.testing.assert_allclose(weight.dense(), expected, rtol=1e-12, atol=1e-12)
    assert (weight.rank, weight.depth) == (RANK, 3 if deep else 2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("deep", [False, True])
def test_factorized_linear_layer(deep):
    U, VT, M = numbers(OUT, RANK), numbers(RANK, IN), numbers(RANK, RANK)
    weight = low_rank(U, VT, M if deep else None)
    x = numbers(5, IN)
    expected = x @ VT.T @ (M.T if deep else np.eye(RANK)) @ U.T  # As the paper's layer applies it.
    found = lrj.dot_general(jnp.asarray(x), weight, (((1,), (0,)), ((), ())))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"U": (12, 2), "VT": (3, 9)}, r"U \(12, 2\) and VT \(3, 9\) do not fit together"),
        ({"U": (12, 2), "VT": (2, 9), "M": (3, 3)}, r"M \(3, 3\) and VT"),
        ({"U": (12,), "VT": (2, 9)}, "do not fit together"),
        ({"U": (13, 2), "VT": (2, 9)}, r"no factors of a 3 x 3 convolution: expected \(out \* 3"),
        ({"U": (12, 2), "VT": (2, 10)}, "no factors of a 3 x 3 convolution"),
    ],
)
def test_factors_that_do_not_fit(factors, message):
    arrays = {name: numbers(*shape) for name, shape in factors.items()}
    with pytest.raises(ValueError, match=message):
        spatial_low_rank(**arrays, kernel_size=(3, 3))
    if "convolution" not in message:
        with pytest.raises(ValueError, match=message):
            low_rank(**arrays)


def network(rank=RANK, depth=3, kind=lrj.SpatialLowRank, features=OUT):
    """The shapes of a small network's variables, one of its convolutions factorized."""
    shape = jax.ShapeDtypeStruct
    vector = shape((features,), jnp.float32)
    conv = {"kernel": shape((3, 3, IN, features), jnp.float32)}
    head = {"kernel": shape((features, 5), jnp.float32), "bias": shape((5,), jnp.bfloat16)}
    block = {"conv": dict(conv), "norm": {"scale": vector, "bias": vector}}
    params = {"stem": {"kernel": shape((2, 3, 1, IN), jnp.float32)}, "block": block, "head": head}
    if rank:
        rule = lrj.Rule("block/conv/kernel", lrj.FixedRank(rank), kind, depth=depth)
        params = lrj.factorize(params, [rule])
    return {"params": params, "batch_stats": {"block": {"norm": {"mean": vector, "var": vector}}}}


def state_dict():
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {
        "conv0.weight": numbers(IN, 1, 2, 3),
        "layer.0.conv.U": numbers(OUT * 3, RANK),
        "layer.0.conv.VT": numbers(RANK, IN * 3),
        "layer.0.conv.M": numbers(RANK, RANK),
        **{f"layer.0.bn.{name}": numbers(OUT, seed=at) for at, name in enumerate(vectors)},
        "layer.0.bn.num_batches_tracked": np.array(7),
        "fc.weight": numbers(5, OUT),
        "fc.bias": numbers(5),
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_whole_state_dict(prefix):
    state = state_dict()
    found = from_state_dict({prefix + name: x for name, x in state.items()}, network(), NAMES)
    params, statistics = found["params"], found["batch_stats"]["block"]["norm"]
    factors = (state[f"layer.0.conv.{name}"] for name in ("U", "VT", "M"))
    expected = {
        "conv": hwio(oihw_of_factors(*factors, 3, 3)),
        "stem": hwio(state["conv0.weight"]),
        "head": state["fc.weight"].T,
    }
    np.testing.assert_allclose(
        params["block"]["conv"]["kernel"].dense(), expected["conv"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(params["stem"]["kernel"], np.float32(expected["stem"]))
    np.testing.assert_array_equal(params["head"]["kernel"], np.float32(expected["head"]))
    np.testing.assert_array_equal(params["head"]["bias"], state["fc.bias"].astype(jnp.bfloat16))
    norm = params["block"]["norm"] | statistics
    theirs = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for name, of in theirs.items():
        np.testing.assert_array_equal(norm[name], np.float32(state[f"layer.0.bn.{of}"]))
    assert jax.tree.structure(found) == jax.tree.structure(network())
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(network()), strict=True):
        assert type(leaf) is np.ndarray and (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)


def test_the_target_may_be_arrays():
    target = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), network())
    found = from_state_dict(state_dict(), target, NAMES)
    again = from_state_dict(state_dict(), network(), NAMES)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, again))


def without(name):
    return {key: value for key, value in state_dict().items() if key != name}


PATH = "params/block/conv/kernel"


@pytest.mark.parametrize(
    ("state", "target", "names", "message"),
    [
        (without("fc.bias"), {}, {}, "params/head/bias: fc.bias is not in .* has fc.weight of"),
        (without("layer.0.bn.running_var"), {}, {}, "batch_stats/block/norm/var: layer.0.bn.runn"),
        (state_dict(), {"depth": 2}, {}, r"layer\.0\.conv\.M: the target has no place"),
        (without("layer.0.conv.M"), {}, {}, rf"{PATH}: .*conv\.M is not .*conv\.U, layer"),
        (state_dict(), {"rank": 0}, {}, rf"{PATH}: .*conv\.weight is not .*factorized as the"),
        (
            state_dict(),
            {"rank": 1},
            {},
            rf"{PATH}/u is made from .*VT and has shape \(1, 3, 3, 2\), expected \(1, 3, 3, 1\)",
        ),
        (state_dict(), {"features": 6}, {}, r"norm/mean is made from .*_mean .*, expected \(6,\)"),
        (state_dict() | {"x.weight": np.ones(1)}, {}, {}, r"x\.weight: the target has no place"),
        (state_dict(), {}, {"head": None}, "params/head/bias: the module names have none"),
        (state_dict(), {}, {"tail": "fc"}, "tail: there is no such module in the target"),
        (
            state_dict() | {"layer.0.conv.VT": numbers(RANK, 10)},
            {},
            {},
            rf"{PATH} from layer\.0\.conv: U \(12, 2\) and VT \(2, 10\) are no factors",
        ),
        (state_dict(), {"kind": lrj.ChannelLowRank}, {}, f"{PATH} is a ChannelLowRank: the"),
        ({}, {}, {}, "which has nothing of this module"),
    ],
)
def test_what_does_not_fit_is_refused(state, target, names, message):
    modules = {ours: theirs for ours, theirs in (NAMES | names).items() if theirs is not None}
    with pytest.raises(ValueError, match=message):
        from_state_dict(state, network(**target), modules)


def test_a_leaf_without_a_counterpart():
    with pytest.raises(ValueError, match=r"params/a/table: PyTorch's modules have no counterpart"):
        from_state_dict(
            {"a.table": np.ones(2)}, {"params": {"a": {"table": np.ones(2)}}}, {"a": "a"}
        )


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ("float64", "bfloat16", True),
        ("bfloat16", "float16", True),
        ("bfloat16", "float32", True),
        ("int64", "int32", True),
        ("int64", "float32", True),
        ("float32", "int32", False),
        ("bfloat16", "int32", False),
        ("complex64", "float32", False),
    ],
)
def test_dtypes_are_converted_within_their_kind(found, wanted, fits):
    values = np.array([1.75, -2.5] if fits and "int" not in found else [1, -2]).astype(found)
    target = {"params": {"head": {"bias": jax.ShapeDtypeStruct((2,), jnp.dtype(wanted))}}}
    if fits:
        array = from_state_dict({"fc.bias": values}, target, {"head": "fc"})["params"]["head"]
        np.testing.assert_array_equal(np.float64(array["bias"]), np.float64(values))
    else:
        with pytest.raises(ValueError, match=rf"bias is made from fc.bias .*{found}.*{wanted}"):
            from_state_dict({"fc.bias": values}, target, {"head": "fc"})


def test_a_whole_checkpoint_is_no_state_dict():
    checkpoint = {"epoch": 3, "state_dict": state_dict(), "optimizer": {"state": {}}}
    with pytest.raises(ValueError, match=r"state_dict, optimizer: .*checkpoint\['state_dict'\]"):
        from_state_dict(checkpoint, network(), NAMES)


WITHOUT_PYTORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from lowrank_jax.torch_state_dict import from_state_dict
target = {"params": {"head": {"kernel": np.ones((2, 3))}}}
state = {"fc.weight": np.arange(6.0).reshape(3, 2)}
print(from_state_dict(state, target, {"head": "fc"})["params"]["head"]["kernel"].tolist())
"""


def test_pytorch_is_not_needed():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]", done.stderr


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("deep", [False, True])
def test_a_network_of_pytorch(stride, deep):
    """The paper's layers in PyTorch, applied as two convolutions, and ours, on the same images."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    class FactorizedConv(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.U = torch.nn.Parameter(torch.randn(OUT * 3, RANK))
            self.VT = torch.nn.Parameter(torch.randn(RANK, IN * 3))
            self.M = torch.nn.Parameter(torch.randn(RANK, RANK)) if deep else None

        def forward(self, x):
            right = self.VT if self.M is None else self.M @ self.VT
            horizontal = right.view(RANK, IN, 1, 3)
            vertical = self.U.view(OUT, 3, RANK).permute(0, 2, 1).unsqueeze(3)
            x = functional.conv2d(x, horizontal, stride=(1, stride), padding=(0, 1))
            return functional.conv2d(x, vertical, stride=(stride, 1), padding=(1, 0))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv0 = torch.nn.Conv2d(1, IN, (2, 3), bias=False)
            self.layer = torch.nn.Sequential(torch.nn.Module())
            self.layer[0].conv = FactorizedConv()
            self.layer[0].bn = torch.nn.BatchNorm2d(OUT)
            self.fc = torch.nn.Linear(OUT, 5)

        def forward(self, x):
            x = functional.relu(self.layer[0].bn(self.layer[0].conv(self.conv0(x))))
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    twin = Network().double()
    twin(torch.randn(20, 1, 9, 9).double())  # Running statistics and weights of their own.
    for parameter in twin.layer[0].bn.parameters():
        torch.nn.init.normal_(parameter, 1.0)
    x = torch.randn(3, 1, 9, 9).double()
    with torch.no_grad():
        expected = twin.eval()(x).numpy()

    state = {name: value.numpy() for name, value in twin.state_dict().items()}
    found = from_state_dict(state, network(depth=3 if deep else 2), NAMES)
    params, statistics = found["params"], found["batch_stats"]["block"]["norm"]

    def conv(x, kernel, stride, padding):
        numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        return lrj.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=numbers, precision="highest"
        )

    y = conv(
        jnp.asarray(x.numpy(), jnp.float32).transpose(0, 2, 3, 1),
        params["stem"]["kernel"],
        1,
        "VALID",
    )
    y = conv(y, params["block"]["conv"]["kernel"], stride, ((1, 1), (1, 1)))
    norm = params["block"]["norm"]
    y = (y - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * norm["scale"] + norm["bias"]
    y = jnp.maximum(y, 0).mean((1, 2)) @ params["head"]["kernel"]
    bias = np.float32(params["head"]["bias"])
    # The bias is kept in bfloat16, with 8 bits.
    np.testing.assert_allclose(y + bias, expected, rtol=1e-4, atol=2**-8 * np.abs(bias).max())
