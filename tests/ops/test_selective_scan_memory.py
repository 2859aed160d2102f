"""Compiled programs of the scan store no more than necessary."""

import jax
import jax.numpy as jnp
import pytest

from tests.ops.test_selective_scan import draw, scan

pytestmark = pytest.mark.optimized


@pytest.mark.slow
def test_no_array_contains_all_states():
    arguments = draw(2, 8192, 8, 16)
    all_states = 4 * 2 * 8192 * 8 * 16

    def temporary(impl):
        gradient = jax.jit(jax.value_and_grad(lambda arguments: scan(arguments, impl=impl)[0].sum()))
        return gradient.lower(arguments).compile().memory_analysis().temp_size_in_bytes

    # Arrays along the sequence have the size of u, a sixteenth of all states, and a chunk has a sixty-fourth of them.
    assert max(temporary("auto"), temporary("chunked")) < all_states
    assert temporary("sequential") > 2 * all_states


def test_auto_is_the_plain_loop_for_short_sequences():
    def program(impl, length):
        return str(jax.make_jaxpr(lambda arguments: scan(arguments, impl=impl))(draw(2, length, 3, 4)))

    assert program("auto", 4) == program("sequential", 4)
    assert program("auto", 5) != program("sequential", 5)


@pytest.mark.slow
def test_the_backward_pass_stores_little_more_than_the_inputs():
    arguments = draw(2, 256, 32, 4)
    low = {key: x if key == "A" else x.astype(jnp.bfloat16) for key, x in arguments.items()}
    _, pull = jax.vjp(lambda low: scan(low, impl="auto"), low)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    given = sum(leaf.nbytes for leaf in jax.tree.leaves(low))
    y, borders = 4 * 2 * 256 * 32, 4 * 2 * 2 * 4 * 32  # float32
    assert kept <= 1.1 * (given + y + borders)
