"""What blocks cost in FLOPs and in memory, by formula: the terms of MambaOut's argument, each by itself.

A FLOP is a multiplication or an addition, so that a multiply-add is two. Norms, activations, softmax, gates and
shortcuts are left out, as in the paper: they cost a constant for each channel and token.

Reference: Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025, section 3.
"""

import math

# Of the state and of the convolution in a Mamba block.
# Reference: github.com/state-spaces/mamba at e9594ce1, mamba_ssm/modules/mamba_simple.py.
D_STATE, D_CONV, EXPAND = 16, 4, 2
# FLOPs of h = exp(delta A) h + (delta u) B and y = C h for each token, channel and state, the exponential as one; and
# those of delta u and D u, and of adding the latter, for each token and channel.
SCAN_OF_STATE, SCAN_OF_CHANNEL = 7, 3


def count_tokens(size: tuple[int, int], stride: int) -> int:
    """Count the tokens L of an image: ceil(height / stride) ceil(width / stride).

    What is left over at an edge makes a token: strided convolutions round up, and models that cut patches are given
    images padded to a multiple of these.
    """
    return math.prod(-(-side // stride) for side in size)


def length_threshold(dim: int) -> int:
    """Give tau = 6 D, the length at which attention's quadratic FLOPs are as many as all others."""
    return 6 * dim


def length_ratio(dim: int, tokens: int) -> float:
    """Give r = L / 6 D (equation 7): the quadratic FLOPs over the linear ones."""
    return tokens / length_threshold(dim)


def transformer_block_flops(dim: int, tokens: int, *, causal: bool = False) -> dict[str, int]:
    """Count 24 D^2 L + 4 D L^2 (equation 6): the products with weights, and those of attention.

    The weights are q, k, v and output (8 D^2 L) and an MLP four times as wide (16 D^2 L). Causal attention needs half
    of the matrix: 2 D L^2.
    """
    return {"weights": 24 * dim**2 * tokens, "attention": (2 if causal else 4) * dim * tokens**2}


def gated_cnn_block_flops(
    dim: int, tokens: int, *, kernel_size: int, expansion_ratio: float, conv_ratio: float, directions: int = 0
) -> dict[str, int]:
    """Count a Gated CNN block (equations 8 to 10), and what an SSM adds that reads the map in some directions.

    With H hidden and C convolved channels: fc1 to 2 H channels, a k x k depthwise convolution of C of them, fc2 from H.
    For each direction an SSM of C channels.

    Args:
        expansion_ratio: H over D; as published 8/3.
        conv_ratio: C over D; as published 1.
        directions: 0 for a block without an SSM.
    """
    hidden, convolved = int(expansion_ratio * dim), int(conv_ratio * dim)
    ssm = _ssm_flops(convolved, math.ceil(convolved / 16), tokens) if directions else {}
    return {
        "fc1": 2 * tokens * dim * 2 * hidden,
        "conv": 2 * tokens * convolved * kernel_size**2,
        **{term: directions * count for term, count in ssm.items()},
        "fc2": 2 * tokens * hidden * dim,
    }


def mamba_block_flops(dim: int, tokens: int) -> dict[str, int]:
    """Count a Mamba block (equation 11).

    With E = 2 D inner channels, N = 16 states and rank R = ceil(D / 16): in_proj to 2 E channels, a causal convolution
    of 4 taps, x_proj to R + 2 N, dt_proj from R to E, the scan, out_proj from E.
    """
    inner, rank = EXPAND * dim, math.ceil(dim / 16)
    return {
        "in_proj": 2 * tokens * dim * 2 * inner,
        "conv": 2 * tokens * inner * D_CONV,
        **_ssm_flops(inner, rank, tokens),
        "out_proj": 2 * tokens * inner * dim,
    }


def _ssm_flops(channels: int, rank: int, tokens: int) -> dict[str, int]:
    return {
        "x_proj": 2 * tokens * channels * (rank + 2 * D_STATE),
        "dt_proj": 2 * tokens * rank * channels,
        "scan": tokens * channels * (SCAN_OF_STATE * D_STATE + SCAN_OF_CHANNEL),
    }


def cache_numbers(dim: int, tokens: int) -> int:
    """Count what a block of causal attention keeps of the tokens so far: 2 L D numbers, their keys and values."""
    return 2 * tokens * dim


def state_numbers(dim: int) -> int:
    """Count what a Mamba block keeps of any number of tokens: E N of the state, and 3 E that the convolution sees."""
    return EXPAND * dim * (D_STATE + D_CONV - 1)


def attention_matrix_numbers(tokens: int) -> int:
    """Count the L^2 weights of full attention in one head."""
    return tokens**2
