"""Time MambaOut-Tiny on CPU, interleaved with timm's model in channels-last format, eager and with `torch.compile`.

    python benchmarks/model_cpu.py [--threads N] [--json PATH]

16 images of 224 px in float32: the forward pass, and the training step (forward, backward, AdamW). Ratios are the time
of timm divided by ours, medians over the rounds: above 1, ours is faster. Without torch or timm, only ours is timed.
"""

import argparse
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import machine, median_ratio, time_interleaved, write_json
from _torch import import_torch

import mambaout_jax as mo
from mambaout_jax.models import cpu_compiler_options

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05


def main() -> None:
    """Print a table with one row per pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mambaout_tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, help="threads of torch (default: all cores, as in JAX)")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch, args.size, args.size, 3)).astype("float32")
    labels = rng.integers(0, 1000, args.batch)
    ours = jax_passes(args.model, images, labels)
    peers, versions = timm_passes(args.model, images, labels, args.threads or machine()["cores"])

    print(*(f"{name}: {value}" for name, value in (machine() | versions).items()), sep="\n")
    print(f"\n{args.model}, {args.batch} images of {args.size} px, float32")
    print(f"{'pass':<14} {'program':<14} {'ms':>9} {'img/s':>7} {'over ours':>10}")
    rows = []
    for name in ours:
        seconds = time_interleaved(
            {"ours": ours[name]} | {peer: passes[name] for peer, passes in peers.items()}, args.rounds
        )
        ratios = {peer: median_ratio(times, seconds["ours"]) for peer, times in seconds.items()}
        for peer, times in seconds.items():
            middle = median(times)
            print(
                f"{name:<14} {peer:<14} {1e3 * middle:9.1f} {args.batch / middle:7.1f} {ratios[peer]:10.2f}", flush=True
            )
        rows.append({"pass": name, "rounds": seconds, "over_ours": ratios})
    write_json(args.json, {"model": args.model, "batch": args.batch, "size": args.size, **versions, "rows": rows})


def jax_passes(name, images, labels):
    """Build our forward pass and training step."""
    model = mo.create_model(name)
    variables = model.init(jax.random.key(0))
    images, labels = jax.device_put((images, labels))
    optimizer = optax.adamw(
        LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )
    apply = jax.jit(model.apply, compiler_options=cpu_compiler_options())

    def loss(params):
        logits, _ = model.apply_train({**variables, "params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, state):
        gradients = jax.grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    # A copy, because the step donates its arguments.
    params = jax.tree.map(jnp.copy, variables["params"])
    carried = [(params, optimizer.init(params))]

    def train():
        carried.append(step(*carried.pop()))
        return carried[-1]

    return {"forward": lambda: apply(variables, images), "training step": train}


def timm_passes(name, images, labels, threads):
    """Build timm's passes, eager and compiled, and return them with versions; empty if timm cannot be imported."""
    try:
        torch = import_torch()
        import timm
        from torch.nn.functional import cross_entropy
    except ImportError as error:
        print(f"timm is skipped: {error}")
        return {}, {}

    torch.set_num_threads(threads)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels)

    def passes(compiled):
        model = timm.create_model(name).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        call = torch.compile(model) if compiled else model

        def forward():
            model.eval()
            with torch.inference_mode():
                call(images)

        def train():
            model.train()
            optimizer.zero_grad()
            cross_entropy(call(images), labels).backward()
            optimizer.step()

        return {"forward": forward, "training step": train}

    versions = {"torch": torch.__version__, "timm": timm.__version__, "torch threads": threads}
    return {"eager": passes(compiled=False), "torch.compile": passes(compiled=True)}, versions


if __name__ == "__main__":
    main()
