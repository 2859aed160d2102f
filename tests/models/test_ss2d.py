"""SS2D and the block around it equal their references, and the directions of one scan do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.models import Functional
from mambaout_jax.models.key_format import KeyFormat, same_names
from mambaout_jax.models.layers.conv import default_conv2d
from mambaout_jax.models.layers.ss2d import CROSS_SCAN, SS2D
from mambaout_jax.models.layers.vss import VSSBlock
from mambaout_jax.weights.state_dict import export_state_dict, load_state_dict
from mambaout_jax.weights.tensors import open_state_dict
from tests.models import golden
from tests.weights import pytorch

CASES = golden.names("vss_block__*")
NAMES = KeyFormat("block", same_names("norm.*", "op.*", "op.*.*", "norm2.*", "mlp.*.*"))
FLOAT32 = jnp.dtype("float32")
SMALL = {"ratio": 2.0, "d_state": 3, "dt_rank": 2, "kernel_size": 3, "conv_bias": True, "gated": True, "impl": "auto"}


class ColumnsOnly:
    """The first columns of a map, row by row: a sequence that is shorter than the map has pixels."""

    def sequence(self, x):
        return x[:, :, :2].reshape(len(x), -1, x.shape[-1])

    def feature_map(self, y, height, width):
        return jnp.pad(y.reshape(len(y), height, 2, -1), ((0, 0), (0, 0), (0, width - 2), (0, 0)))


def drawn(block):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), block.init(jax.random.key(0))
    )


def images(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def test_there_are_cases():
    assert len(CASES) == 2


@pytest.mark.parametrize("name", CASES)
def test_a_block_computes_what_the_reference_computes_and_its_weights_come_back(name):
    case = golden.load(name)
    options = case.options
    op = SS2D(
        options["hidden_dim"],
        ratio=options["ssm_ratio"],
        directions=CROSS_SCAN,
        d_state=options["ssm_d_state"],
        dt_rank=None,
        kernel_size=3,
        conv_bias=options.get("ssm_conv_bias", True),
        gated=options["forward_type"] == "v0",
        impl="auto",
        dtype=FLOAT32,
    )
    block = Functional(VSSBlock(options["hidden_dim"], op, mlp_ratio=options["mlp_ratio"], dtype=FLOAT32))
    variables = load_state_dict(block.name, block.shapes, NAMES, *open_state_dict(case.state_dict))
    with jax.default_matmul_precision("highest"):
        output = jax.jit(block.apply)(variables, case.input)
    channels_first = output.shape != case.output.shape
    expected = case.output.transpose(0, 2, 3, 1) if channels_first else case.output
    np.testing.assert_allclose(output, expected, rtol=0, atol=case.atol)
    pytorch.assert_equal_state_dicts(export_state_dict(block.name, block.shapes, NAMES, variables), case.state_dict)


def test_the_cross_scan_reads_rows_and_columns_in_both_directions():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    orders = [direction.sequence(x).reshape(-1).tolist() for direction in CROSS_SCAN]
    assert orders == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]
    for direction in CROSS_SCAN:
        np.testing.assert_array_equal(direction.feature_map(direction.sequence(x), 2, 3), x)


@pytest.mark.slow
def test_one_scan_of_all_directions_is_the_sum_of_a_scan_of_each_for_sequences_of_any_length():
    directions, x = (CROSS_SCAN[3], ColumnsOnly(), CROSS_SCAN[0]), images((2, 3, 4, 10))
    joint = Functional(SS2D(5, directions=directions, dtype=FLOAT32, **SMALL))
    params = drawn(joint)["params"]
    total = 0.0
    for index, direction in enumerate(directions):
        single = Functional(SS2D(5, directions=(direction,), dtype=FLOAT32, **SMALL))
        split = {name: jnp.split(params[name], 3)[index] for name in params if params[name].__class__ is not dict}
        total += single.apply({"params": {**params, **split}, "batch_stats": {}}, x, method="scan")
    ours = joint.apply({"params": params, "batch_stats": {}}, x, method="scan")
    np.testing.assert_allclose(ours, total, rtol=0, atol=1e-5 * float(jnp.abs(total).max()))


@pytest.mark.slow
def test_initial_values_are_those_of_the_reference():
    params = Functional(SS2D(32, directions=CROSS_SCAN, dtype=FLOAT32, **SMALL)).init(jax.random.key(0))["params"]
    np.testing.assert_allclose(params["A_logs"], np.log(np.tile([1.0, 2.0, 3.0], (256, 1))), rtol=1e-6)
    assert (params["Ds"] == 1).all()
    steps = jax.nn.softplus(params["dt_projs_bias"])
    assert 0.99e-3 < float(steps.min()) < 2e-3
    assert 5e-2 < float(steps.max()) < 0.101
    conv = params["conv2d"]
    for values, bound in (
        (params["x_proj_weight"], 64**-0.5),
        (params["dt_projs_weight"], 2**-0.5),
        (conv["weight"], 1 / 3),
        (conv["bias"], 1 / 3),
    ):
        assert 0.9 * bound < float(jnp.abs(values).max()) <= bound
        assert abs(float(values.std()) - bound / 3**0.5) < 0.1 * bound


def test_strided_convolutions_start_with_pytorchs_values():
    conv = Functional(default_conv2d(16, 32, 3, stride=2, dtype=FLOAT32)).init(jax.random.key(0))["params"]
    for values in conv.values():
        assert 0.8 / 12 < float(jnp.abs(values).max()) <= 1 / 12
        assert abs(float(values.std()) - 1 / 12 / 3**0.5) < 0.2 / 12
