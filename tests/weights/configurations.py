"""Random configurations of MambaOut, small enough to build by the hundred."""

from hypothesis import strategies as st

from mambaout_jax.weights.key_map import expected_shapes, tensor_specs
from mambaout_jax.weights.state_dict import get_format


@st.composite
def options(draw):
    """Draw options of `create_model`, including ratios at and next to the points where int(ratio * dim) jumps."""
    stages = draw(st.integers(1, 3))
    dims = draw(st.lists(st.integers(2, 50), min_size=stages, max_size=stages))
    expansion_ratio = draw(ratios(dims, 0.5, 4.0))
    conv_ratio = draw(ratios(dims, 0.5, expansion_ratio))
    return {
        "depths": tuple(draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))),
        "dims": tuple(dims),
        "expansion_ratio": expansion_ratio,
        "conv_ratio": conv_ratio,
        "kernel_size": draw(st.sampled_from([1, 3, 5, 7, 9])),
        "act_layer": draw(st.sampled_from(["gelu", "silu", "relu"])),
        "head_fn": draw(st.sampled_from(["default", "norm_mlp"])),
        "ls_init_value": draw(st.sampled_from([None, 1e-6, 1.0])),
        "stem_mid_norm": draw(st.booleans()),
        "downsample": draw(st.sampled_from(["conv", "conv_nf"])),
        "in_chans": draw(st.integers(1, 5)),
        "num_classes": draw(st.integers(1, 20)),
    }


def ratios(dims, least, most):
    """Draw ratios, arbitrary and common ones."""
    simple = [n / d for d in (1, 2, 3, 4, 5, 7, 10, 49, *dims) for n in range(1, 4 * d + 1) if least <= n / d <= most]
    return st.floats(least, most) | st.sampled_from(simple)


def shapes(model, key_format=None):
    """Return the shapes of a model's state dict."""
    return expected_shapes(tensor_specs(model.shapes, get_format(model, key_format)))
