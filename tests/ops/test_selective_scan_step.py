"""Errors of a step name its arguments as passed, and calls outside of jit are compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import selective_scan, selective_scan_step
from mambaout_jax.ops.selective_scan import IMPLS
from tests.ops.test_selective_scan import assert_close, draw, scan


def one_step(arguments):
    """Return the arguments of the first step."""
    along = ("u", "delta", "B", "C", "z")
    now = {name: x[:, 0] if name in along else x for name, x in arguments.items()}
    return now | {"state": now.pop("initial_state")}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"u": np.zeros((2, 5, 4))}, r"u has shape \(2, 5, 4\); expected \(b, d\) of at least one channel"),
        ({"delta": np.zeros((2, 5))}, r"delta has shape \(2, 5\), axis 1 has 5; expected \(2, 4\)"),
        ({"z": np.zeros((2, 1, 4))}, r"z has shape \(2, 1, 4\), axis 1 has 1; expected \(2, 4\)"),
        ({"B": -np.ones((4, 3))}, r"B has shape \(4, 3\), axis 0 has 4; expected \(2, 3\)"),
        (
            {"C": np.zeros((2, 3, 3))},
            r"C has shape \(2, 3, 3\); expected \(b, n\) or \(b, g, n\) with g groups that divide the 4",
        ),
        ({"C": np.zeros((2, 1, 1, 3))}, r"C has shape \(2, 1, 1, 3\); expected \(b, n\) or"),
        ({"state": np.zeros((2, 4, 2))}, r"state has shape \(2, 4, 2\), axis 2 has 2; expected \(2, 4, 3\)"),
        ({"state": np.zeros((2, 4, 3), np.int32)}, "state is int32; expected real numbers"),
        ({"A": np.ones((4, 3))}, "A is positive at 12 of 12 positions"),
    ],
)
def test_invalid_step_arguments_are_named_as_passed(change, sentence, no_type_checks):
    with pytest.raises(ValueError, match=sentence):
        selective_scan_step(**one_step(draw(2, 5, 4, 3)) | change)


@pytest.mark.slow
def test_constant_B_and_C_of_a_step_are_passed_as_one_group_per_channel():
    # With as many sequences as channels, (d, n) would be interpreted as (b, n).
    now, constant = one_step(draw(4, 1, 4, 3)), draw(4, 1, 4, 3, constant=True)
    each = {name: jnp.broadcast_to(constant[name][None], (4, 4, 3)) for name in ("B", "C")}
    expected = scan(constant)[0][:, 0]
    assert_close(selective_scan_step(**now | each, delta_softplus=True)[0], expected)
    own = {name: constant[name] for name in ("B", "C")}
    assert np.abs(selective_scan_step(**now | own, delta_softplus=True)[0] - expected).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_outside_of_jit_only_the_first_call_is_compiled(impl, caplog):
    function = functools.partial(selective_scan, return_last_state=True, impl=impl)

    def run():
        arguments = draw(2, 6, 4, 3)
        y, pull = jax.vjp(lambda arguments: function(**arguments), arguments)
        return function(**arguments), selective_scan_step(**one_step(arguments)), pull(y)

    def events():
        caplog.clear()
        with jax.log_compiles(True):
            run()
        return [message for message in caplog.messages if message.startswith(("Finished tracing", "Compiling"))]

    assert events()
    assert not events()
