"""The scans of a block are one call, and no program has the states of all steps, (batch, length, channels, states).

By tracing only: a program contains the implementations of a scan for all platforms. The lengths and the numbers of
states are such that the states of all steps are by far the largest array that a scan could make, and larger than the
maps of every layer.
"""

import math

import jax
import jax.numpy as jnp
import pytest

import mambaout_jax as mo
from mambaout_jax.models import find_family
from mambaout_jax.models.jaxprs import inner_jaxprs
from mambaout_jax.ops.selective_scan import run_scan
from tests.marks import slow_but
from tests.models import golden

SIZE, STATES = (512, 512), 64
SCANNING = [name for name in golden.small_models() if any(map(all, golden.scans_of(name)))]
ONE_OF_EACH = ["mambaout-conv_ssm", "mambavision-concat", "plainmamba-plain", "vim-v2", "vmamba-v0"]
# A window of MambaVision has 1,024 steps. All have more channels, so that the patches that the gradient of the stem
# collects, and the channels that kernels pad, are fewer than the states.
LARGER = {
    "mambaout-conv_ssm": {"dims": (16,)},
    "mambavision-concat": {"window_size": (8, 8, 32, 16), "dim": 16, "in_dim": 4},
    "plainmamba-dwconv": {"embed_dim": 32},
}


def build(name, **options):
    base, own = golden.small_models()[name]
    states = {key: STATES for key in ("d_state", "ssm_d_state") if key in find_family(base).options}
    return mo.create_model(
        base, **{"img_size": SIZE, "num_classes": 5, **own, **states, **LARGER.get(name, {}), **options}
    )


def programs(model):
    """Trace the forward pass and the gradient of a model."""
    images = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)

    def loss(params, batch_stats, images):
        return jnp.square(model.apply_train({"params": params, "batch_stats": batch_stats}, images)[0]).mean()

    shapes = model.shapes
    forward = jax.make_jaxpr(model.apply)(shapes, images)
    gradient = jax.make_jaxpr(jax.value_and_grad(loss))(shapes["params"], shapes["batch_stats"], images)
    return [list(equations(program.jaxpr)) for program in (forward, gradient)]


def equations(jaxpr):
    """Return all equations of a program, those of loops, branches and kernels included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation.params):
            yield from equations(inner)


def all_states(program):
    """Return the number of states of all steps of the largest scan of a forward pass."""
    scans = [equation for equation in program if equation.params.get("name") == run_scan.__name__]
    sizes = []
    for scan in scans:
        u, _, A, *_ = (var.aval for var in scan.invars)
        sizes.append(u.size * A.shape[-1])
    return max(sizes)


def largest(program):
    """Return the number of elements of the largest array that an equation computes."""
    return max(math.prod(getattr(var.aval, "shape", ())) for equation in program for var in equation.outvars)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(ONE_OF_EACH, SCANNING, "nightly"))
def test_no_array_has_the_states_of_all_steps(name):
    forward, gradient = programs(build(name))
    limit = all_states(forward)
    for program, kernel in ((forward, "selective_scan_forward"), (gradient, "selective_scan_backward")):
        kernels = [equation.params["name"] for equation in program if equation.primitive.name == "pallas_call"]
        assert kernel in kernels
        assert largest(program) < limit
    for program in programs(build(name, scan_impl="associative")):
        assert largest(program) >= limit


@pytest.mark.parametrize("name", SCANNING)
def test_all_directions_of_a_block_are_one_scan(name):
    model = mo.create_model(golden.small_models()[name][0], img_size=64, **golden.small_models()[name][1])
    program = jax.make_jaxpr(model.apply)(model.shapes, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    scans = [equation for equation in equations(program.jaxpr) if equation.params.get("name") == run_scan.__name__]
    paths = [[entry.key for entry in path] for path, _ in jax.tree.leaves_with_path(model.shapes["params"])]
    decays = [path for path in paths if str(path[-1]).startswith("A_log")]
    mixers = [next(name for name in ("mixer", "op", "ssm") if name in path) for path in decays]
    blocks = {tuple(path[: path.index(name)]) for path, name in zip(decays, mixers, strict=True)}
    assert len(scans) == len(blocks) > 0
