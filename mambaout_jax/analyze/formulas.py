"""Formulas for the FLOPs and memory of blocks, as in MambaOut's analysis.

A FLOP is a multiplication or an addition; a multiply-add is two. Norms, activations, softmax, gates and shortcuts are
not counted, as in the paper: their cost per channel and token is constant.

Reference: Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025, section 3.
"""

import math

from mambaout_jax.models import ScanInfo

# States per channel, taps of the convolution and expansion of a Mamba block.
# Reference: github.com/state-spaces/mamba at e9594ce1, mamba_ssm/modules/mamba_simple.py.
D_STATE, D_CONV, EXPAND = 16, 4, 2
# FLOPs of h = exp(delta A) h + (delta u) B and y = C h per token, channel and state, with one for the exponential,
# and FLOPs of delta u and y + D u per token and channel.
SCAN_FLOPS_PER_STATE, SCAN_FLOPS_PER_CHANNEL = 7, 3


def count_tokens(size: tuple[int, int], stride: int) -> int:
    """Count the tokens L of an image: ceil(height / stride) ceil(width / stride).

    A remainder at an edge counts as a token: strided convolutions round up, and for patch embeddings images are padded
    to a multiple of the patch size.
    """
    return math.prod(-(-side // stride) for side in size)


def length_threshold(dim: int) -> int:
    """Compute tau = 6 D, the length at which the quadratic FLOPs of a Transformer block equal the linear ones."""
    return 6 * dim


def length_ratio(dim: int, tokens: int) -> float:
    """Compute r = L / 6 D (equation 7), the ratio of quadratic to linear FLOPs."""
    return tokens / length_threshold(dim)


def transformer_block_flops(dim: int, tokens: int, *, causal: bool = False) -> dict[str, int]:
    """Compute the FLOPs 24 D^2 L + 4 D L^2 (equation 6) of products with weights and of attention.

    The weights are q, k, v and output (8 D^2 L) and an MLP with ratio 4 (16 D^2 L). Causal attention needs half of the
    matrix: 2 D L^2.
    """
    return {"weights": 24 * dim**2 * tokens, "attention": (2 if causal else 4) * dim * tokens**2}


def gated_cnn_block_flops(
    dim: int, tokens: int, *, kernel_size: int, expansion_ratio: float, conv_ratio: float, scans: ScanInfo | None = None
) -> dict[str, int]:
    """Compute the FLOPs of a Gated CNN block (equations 8 to 10), optionally with an SSM.

    With H hidden and C convolved channels: fc1 to 2 H channels, a k x k depthwise convolution of C of them, fc2 from H,
    and optionally per direction the projections and the scan of an SSM.

    Args:
        expansion_ratio: H over D; published: 8/3.
        conv_ratio: C over D; published: 1.
        scans: directions, channels and states of the SSM; None for a block without an SSM. That of a Mamba block has C
            channels and 16 states.
    """
    hidden, convolved = int(expansion_ratio * dim), int(conv_ratio * dim)
    ssm = {} if scans is None else _ssm_flops(scans.channels, math.ceil(scans.channels / 16), tokens, scans.d_state)
    return {
        "fc1": 2 * tokens * dim * 2 * hidden,
        "conv": 2 * tokens * convolved * kernel_size**2,
        **{term: scans.directions * count for term, count in ssm.items()},
        "fc2": 2 * tokens * hidden * dim,
    }


def mamba_block_flops(dim: int, tokens: int) -> dict[str, int]:
    """Compute the FLOPs of a Mamba block (equation 11).

    With E = 2 D inner channels, N = 16 states and rank R = ceil(D / 16): in_proj to 2 E channels, a causal convolution
    of 4 taps, x_proj to R + 2 N, dt_proj from R to E, the scan, out_proj from E.
    """
    inner, rank = EXPAND * dim, math.ceil(dim / 16)
    return {
        "in_proj": 2 * tokens * dim * 2 * inner,
        "conv": 2 * tokens * inner * D_CONV,
        **_ssm_flops(inner, rank, tokens, D_STATE),
        "out_proj": 2 * tokens * inner * dim,
    }


def _ssm_flops(channels: int, rank: int, tokens: int, d_state: int) -> dict[str, int]:
    return {
        "x_proj": 2 * tokens * channels * (rank + 2 * d_state),
        "dt_proj": 2 * tokens * rank * channels,
        "scan": tokens * channels * (SCAN_FLOPS_PER_STATE * d_state + SCAN_FLOPS_PER_CHANNEL),
    }


def cache_numbers(dim: int, tokens: int) -> int:
    """Count the numbers in the cache of a block of causal attention: 2 L D, keys and values of all tokens so far."""
    return 2 * tokens * dim


def state_numbers(dim: int) -> int:
    """Count the numbers in the state of a Mamba block: E N of the SSM and 3 E inputs of the convolution."""
    return EXPAND * dim * (D_STATE + D_CONV - 1)


def attention_matrix_numbers(tokens: int) -> int:
    """Count the L^2 weights of full attention per head."""
    return tokens**2
