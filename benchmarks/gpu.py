"""Measure models and operations on one GPU, alternating with timm, and compare them with float64 on the CPU.

    python benchmarks/gpu.py [--only correctness|depthwise|scan|model] [--rounds N] [--json PATH]

The model is MambaOut-Tiny on images of 224 px in bfloat16: the forward pass for inference, and the training step
(forward, backward, AdamW), alternating with timm's in channels-last format with automatic mixed precision, eager and
with `torch.compile`; without torch for CUDA only ours are timed. Depthwise convolutions are those of its four maps;
GB/s counts one read and one write of the map, so that the bandwidth of the card is the limit. The selective scan has
384 channels and 16 states, in float32. `--small` runs everything on tiny shapes, to test this program, which has not
been run on a GPU yet.
"""

import argparse
import contextlib
import time
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from _programs import LEARNING_RATE, WEIGHT_DECAY, draw_scan, model_passes
from _timing import machine, median_ratio, time_interleaved, write_json
from _torch import import_torch

import mambaout_jax as mo
from mambaout_jax.ops import depthwise_conv2d, selective_scan

MODEL, KERNEL, CHANNELS = "mambaout_tiny", 7, 384
MAPS = ((56, 96), (28, 192), (14, 384), (7, 576))
LENGTHS = (196, 1024, 4096, 16384)
SCANS = ("auto", "associative", "chunked", "sequential")
# Maximum lengths: "associative" stores a tree of all steps, "sequential" launches a kernel per step.
LONGEST = {"associative": 4096, "sequential": 1024}


def main() -> None:
    """Print one table per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    if args.small:
        args.batch, args.rounds = 2, 2
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    started, results = time.monotonic(), {}
    for part in (args.only,) if args.only else PARTS:
        print(flush=True)
        results[part] = PARTS[part](args)
    print(f"\n{time.monotonic() - started:.0f} s")
    write_json(args.json, results)


def draw_maps(batch, side, channels):
    """Draw a map, a kernel and a cotangent."""
    rng = np.random.default_rng(0)
    shapes = (batch, side, side, channels), (KERNEL, KERNEL, 1, channels), (batch, side, side, channels)
    return [rng.normal(size=shape) for shape in shapes]


def depthwise_by_definition(x, kernel):
    """Compute the convolution in the dtype of its arguments."""
    half = KERNEL // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    height, width = x.shape[1:3]
    shifts = [(i, j) for i in range(KERNEL) for j in range(KERNEL)]
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j, 0] for i, j in shifts)


def scan_by_definition(u, delta, A, B, C):
    """Compute the scan in the dtype of its arguments."""
    state, y = np.zeros((len(u), *A.shape)), np.empty_like(u)
    for t in range(u.shape[1]):
        decay = np.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        y[:, t] = (state * C[:, t, None]).sum(-1)
    return y


def measure_correctness(args):
    """Compare all forms with their definitions, and the model with itself in float32, relative to the largest value."""
    side, channels, length = (8, 16, 40) if args.small else (28, 192, 1024)
    x, kernel, _ = draw_maps(2, side, channels)
    arguments = draw_scan(2, length, channels)
    cases = {
        **{f"depthwise, {impl}": partial(depthwise_conv2d, impl=impl) for impl in ("lax", "shift")},
        **{f"scan, {impl}": partial(selective_scan, impl=impl) for impl in SCANS},
    }
    expected = {"depthwise": depthwise_by_definition(x, kernel), "scan": scan_by_definition(*arguments)}
    rows = []
    print(f"{'correctness':<28}{'largest difference, relative':>30}")
    for name, function in cases.items():
        given = (x, kernel) if name.startswith("depthwise") else arguments
        found = jax.jit(function)(*(jnp.asarray(value, jnp.float32) for value in given))
        rows.append((name, relative_difference(found, expected[name.partition(",")[0]])))
        print(f"{rows[-1][0]:<28}{rows[-1][1]:>30.1e}", flush=True)
    model = mo.create_model(MODEL, **small_model(args))
    images = np.random.default_rng(0).normal(size=(2, *model.input_spec.size, 3)).astype("float32")
    with jax.default_device(jax.devices("cpu")[0]):
        variables = model.init(jax.random.key(0))
        logits = np.asarray(jax.jit(model.apply)(variables, images))
    for dtype in ("float32", "bfloat16"):
        found = jax.jit(mo.create_model(MODEL, dtype=dtype, **small_model(args)).apply)(
            jax.device_put(variables, jax.devices()[0]), images
        )
        rows.append((f"{MODEL}, {dtype}", relative_difference(found, logits)))
        print(f"{rows[-1][0]:<28}{rows[-1][1]:>30.1e}", flush=True)
    return [{"case": name, "difference": value} for name, value in rows]


def relative_difference(found, expected):
    """Return the largest difference divided by the largest expected value."""
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


def small_model(args):
    """Return the options that make the model small."""
    return {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16), "img_size": 32} if args.small else {}


def measure_depthwise(args):
    """Time both forms of the depthwise convolution in bfloat16."""
    rows = []
    print(f"{'depthwise, bfloat16':<22}{'pass':<12}{'impl':<8}{'ms':>8}{'GB/s':>8}{'over lax':>10}")
    for side, channels in ((8, 16),) if args.small else MAPS:
        x, kernel, dy = (jnp.asarray(value, jnp.bfloat16) for value in draw_maps(args.batch, side, channels))

        def gradient(x, kernel, dy, impl):
            y, transpose = jax.vjp(partial(depthwise_conv2d, impl=impl), x, kernel)
            return y, transpose(dy)

        for name, function, given, passes in (
            ("forward", depthwise_conv2d, (x, kernel), 1),
            ("gradient", gradient, (x, kernel, dy), 3),
        ):
            calls = {impl: partial(jax.jit(partial(function, impl=impl)), *given) for impl in ("lax", "shift")}
            seconds = time_interleaved(calls, args.rounds)
            for impl, times in seconds.items():
                rate = passes * 2 * x.nbytes / median(times) / 1e9
                ratio = median_ratio(seconds["lax"], times)
                shape = f"{args.batch}x{side}x{side}x{channels}"
                print(f"{shape:<22}{name:<12}{impl:<8}{1e3 * median(times):8.3f}{rate:8.0f}{ratio:10.2f}", flush=True)
                rows.append({"map": shape, "pass": name, "impl": impl, "seconds": times, "GB/s": rate})
    return rows


def measure_scan(args):
    """Time the forms of the selective scan over lengths."""
    rows, batch = [], 2 if args.small else 8
    print(f"{'scan, float32':<22}{'pass':<12}{'impl':<14}{'ms':>9}{'MiB':>9}{'over auto':>11}")
    for length in (20,) if args.small else LENGTHS:
        given = [jnp.asarray(value, jnp.float32) for value in draw_scan(batch, length, CHANNELS)]
        for name in ("forward", "gradient"):
            programs = {}
            for impl in SCANS:
                if length > LONGEST.get(impl, length):
                    continue
                forward = partial(selective_scan, impl=impl)
                value = jax.value_and_grad(lambda *x, forward=forward: (forward(*x) * x[0]).sum(), argnums=range(5))
                programs[impl] = jax.jit(forward if name == "forward" else value).lower(*given).compile()
            seconds = time_interleaved({impl: partial(run, *given) for impl, run in programs.items()}, args.rounds)
            for impl, times in seconds.items():
                memory = programs[impl].memory_analysis().temp_size_in_bytes / 2**20
                ratio, shape = median_ratio(seconds["auto"], times), f"{batch}x{length}x{CHANNELS}"
                print(
                    f"{shape:<22}{name:<12}{impl:<14}{1e3 * median(times):9.3f}{memory:9.1f}{ratio:11.2f}", flush=True
                )
                rows.append({"shape": shape, "pass": name, "impl": impl, "seconds": times, "MiB": memory})
    return rows


def measure_model(args):
    """Time forward pass and training step in bfloat16."""
    model = mo.create_model(MODEL, dtype="bfloat16", **small_model(args))
    ours, peers = model_passes(model, *draw_batch(args)), torch_passes(args)
    rows = []
    print(f"{MODEL + ', bfloat16':<26}{'program':<16}{'ms':>9}{'img/s':>9}{'over ours':>11}")
    for name in ours:
        seconds = time_interleaved(
            {"ours": ours[name], **{peer: passes[name] for peer, passes in peers.items()}}, args.rounds
        )
        for peer, times in seconds.items():
            middle, ratio = median(times), median_ratio(times, seconds["ours"])
            print(f"{name:<26}{peer:<16}{1e3 * middle:9.2f}{args.batch / middle:9.0f}{ratio:11.2f}", flush=True)
            rows.append({"pass": name, "program": peer, "seconds": times, "over_ours": ratio})
    return rows


def draw_batch(args):
    """Draw images and labels."""
    rng, side = np.random.default_rng(0), 32 if args.small else 224
    return rng.normal(size=(args.batch, side, side, 3)).astype("float32"), rng.integers(0, 1000, args.batch)


def torch_passes(args):
    """Build timm's passes, eager and compiled; empty without torch for CUDA."""
    with contextlib.suppress(ImportError):
        torch = import_torch()
        import timm

        if torch.cuda.is_available():
            print(f"torch {torch.__version__}, timm {timm.__version__}")
            return {
                name: timm_passes(torch, timm, args, name == "torch.compile") for name in ("eager", "torch.compile")
            }
    print("timm is skipped: torch for CUDA is not installed")
    return {}


def timm_passes(torch, timm, args, compiled):
    """Build the passes of timm's model with automatic mixed precision."""
    images, labels = (torch.from_numpy(value).cuda() for value in draw_batch(args))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    model = timm.create_model(MODEL).cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    call = torch.compile(model) if compiled else model
    mixed = partial(torch.autocast, "cuda", dtype=torch.bfloat16)

    def infer():
        model.eval()
        with torch.inference_mode(), mixed():
            call(images)
        torch.cuda.synchronize()

    def train():
        model.train()
        optimizer.zero_grad()
        with mixed():
            loss = torch.nn.functional.cross_entropy(call(images), labels)
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()

    return {"forward": infer, "training step": train}


PARTS = {
    "correctness": measure_correctness,
    "depthwise": measure_depthwise,
    "scan": measure_scan,
    "model": measure_model,
}

if __name__ == "__main__":
    main()
