"""Every model of every family has the same results and gradients on meshes with axes of any type."""

import contextlib

import jax
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import MambaBlock
from mambaout_jax.models.api import Functional
from mambaout_jax.models.layers.parameters import ones, parameter
from tests import meshes
from tests.marks import slow_but
from tests.meshes import LAYOUTS
from tests.models import golden

SMALL = golden.small_models()
BATCH, SIZE = 8, (32, 40)
SCANNED = {"scan_blocks": True, "remat": "full"}
# The others at night: they take minutes to compile.
COMPARED = ["mambaout-conv", "mambaout-conv_ssm", "vit-class_token"]
# Allowed differences above 1e-5: at the position that the key draws, weights that differ in their last bit change
# gradients by 2e-5.
ALLOWED = {"vim-random": 1e-4}


def program(name, *, random=True, output="logits", **options):
    """Return the training forward pass as a function of weights and images, with weights and images."""
    base, own = SMALL[name]
    rates = {"drop_path_rate": 0.3, "drop_rate": 0.2}
    model = mo.create_model(base, **{"img_size": SIZE, "num_classes": 4, **own, **rates, **options})
    rng = np.random.default_rng(3)

    def moved(leaf):  # so that a residual branch is as large as its trunk
        return np.asarray(leaf) + 0.2 * rng.normal(size=leaf.shape).astype(np.float32)

    variables = jax.tree.map(moved, model.init(jax.random.key(0)))
    images = rng.normal(size=(BATCH, *SIZE, 3)).astype(np.float32)

    def run(params, images):
        key = jax.random.key(1) if random else None
        return model.apply_train({**variables, "params": params}, images, key=key, output=output)[0]

    return run, variables["params"], images


def compare(name):
    """Compare four devices with one on every layout.

    Returns:
        The results by layout, the number of sums over devices that are needed, and the difference that is allowed.
    """
    base, own = SMALL[name]
    num_statistics = len(jax.tree.leaves(mo.create_model(base, **own).shapes["batch_stats"]))
    together = program(name)
    found = {layout: meshes.compare(layout, *together) for layout in LAYOUTS if layout != "shard_map"}
    allowed = ALLOWED.get(name, 1e-5)
    alone = program(name, random=False)
    if num_statistics:  # of few values here, which magnifies rounding
        allowed = max(allowed, 10 * meshes.reordering_difference(*alone))
    else:  # under `shard_map` and `pmap`, batch statistics would be those of one device
        # There a key is the same on all devices, and so are the draws for their rows.
        found["shard_map"] = meshes.compare("shard_map", *alone)
        found["pmap"] = {"difference": meshes.compare_pmap(*alone)}
    # Each gradient is summed once; each batch statistic once forward and once, with another sum, backward.
    return found, len(jax.tree.leaves(together[1])) + 2 * num_statistics, allowed


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(COMPARED, SMALL, "nightly"))
@pytest.mark.parametrize(("layout", "options"), [("explicit_model", {}), ("shard_map", SCANNED)])
def test_gradients_have_the_types_of_their_weights(name, layout, options):
    meshes.check_types(layout, *program(name, output="features", **options))


@pytest.mark.run
@pytest.mark.parametrize("name", slow_but(["mambaout-conv_ssm"], SMALL, "nightly"))
def test_four_devices_equal_one(name):
    found, sums, allowed = meshes.on_four_devices("tests.models.test_sharding", f"compare({name!r})")
    for layout, result in found.items():
        assert result["difference"] < allowed, (layout, result)
        if layout in LAYOUTS and LAYOUTS[layout].is_data_parallel:
            assert result["collectives"].keys() <= {"all-reduce"}, (layout, result)
            assert result["collectives"]["all-reduce"] <= sums, (layout, result)


@pytest.mark.slow
@pytest.mark.parametrize("in_context", [True, False], ids=["set_mesh", "arrays_alone"])
def test_results_are_split_like_the_first_argument(in_context):
    block = Functional(MambaBlock(8))
    mesh = jax.make_mesh((1,), ("data",))
    variables = jax.device_put(block.init(jax.random.key(0)), jax.NamedSharding(mesh, jax.P()))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.device_put(np.ones((2, 5, 8), np.float32), rows)

    def specs(tree):
        return [leaf.sharding.spec[0] for leaf in jax.tree.leaves(tree)]

    with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
        assert specs(block.apply(variables, x)) == ["data"]
        state = jax.device_put(MambaBlock(8).initial_state(2), rows)
        assert specs(block.apply(variables, state, x[:, 0], method="step")) == ["data"] * 3


class Statistics(nnx.Module):
    def __init__(self):
        self.weight = parameter((8,), ones)

    def __call__(self, x):
        y = x * self.weight[None]
        return y, y.sum(), y.mean(1)


def test_results_of_any_rank_are_split_by_rows_as_far_as_they_have_axes():
    functional = Functional(Statistics())
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    variables = jax.device_put(functional.init(jax.random.key(0)), jax.NamedSharding(mesh, jax.P()))
    x = jax.device_put(np.ones((2, 8), np.float32), jax.NamedSharding(mesh, jax.P("data")))
    rows, total, means = functional.apply(variables, x)
    assert [jax.typeof(y).sharding.spec for y in (rows, total, means)] == [jax.P("data", None), jax.P(), jax.P("data")]
    assert total == 16
