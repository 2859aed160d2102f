"""Break one invariant at a time, and check that a test fails.

    python benchmarks/mutants.py [--only NAME ...] [--list]

Each mutant is a small change of the source that breaks one invariant of the project: numerics, randomness, data,
resuming, devices, errors. It is applied to a copy of the checkout in a temporary folder, where the given tests must
fail; in the unchanged copy they must pass. Prints a table, and exits with 1 if a mutant survives or a test fails
without it. Cost: about a minute per mutant on two CPU cores.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("benchmarks", "configs", "docs", "launch", "main.py", "mambaout_jax", "pyproject.toml", "README.md",
          "requirements.txt", "tests")  # fmt: skip


class Mutant(NamedTuple):
    """A change that breaks an invariant, and the tests that must fail.

    Args:
        invariant: description of the invariant.
        file: path within the checkout.
        old, new: text that occurs once in the file, and its replacement.
        tests: arguments of pytest.
    """

    invariant: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = {
    "gelu": Mutant(
        "GELU is exact", "mambaout_jax/ops/activations.py",
        "0.5 * (1 + lax.erf(x * math.sqrt(0.5)))", "0.5 * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**3)))",
        ("tests/ops/test_activations.py",),
    ),
    "norm-eps": Mutant(
        "a norm uses the given eps", "mambaout_jax/ops/norm.py",
        "scale = lax.rsqrt(jnp.square(deviation).mean(-1, keepdims=True) + eps)",
        "scale = lax.rsqrt(jnp.square(deviation).mean(-1, keepdims=True) + 1e-3)",
        ("tests/ops/test_norm.py",),
    ),
    "batch-variance": Mutant(
        "running variance is unbiased", "mambaout_jax/models/layers/norm.py",
        "batch_variance * (count / (count - 1))", "batch_variance * 1.0",
        ("tests/models/test_batch_norm.py",),
    ),
    "step-key": Mutant(
        "keys are folded with the step", "mambaout_jax/train/step.py",
        "jax.random.split(jax.random.fold_in(key, state.step))", "jax.random.split(key)",
        ("tests/train/test_step.py", "-k", "random_numbers"),
    ),
    "block-key": Mutant(
        "no two blocks share a key", "mambaout_jax/models/layers/blocks.py",
        "jax.random.fold_in(key, index)", "jax.random.fold_in(key, 0)",
        ("tests/models/test_blocks.py",),
    ),
    "ema": Mutant(
        "the EMA follows its formula", "mambaout_jax/train/optimizer.py",
        "jnp.minimum(decay, (1.0 + step) / (10.0 + step))", "jnp.minimum(decay, (2.0 + step) / (10.0 + step))",
        ("tests/train/test_step.py", "-k", "average"),
    ),
    "denominator": Mutant(
        "denominators are summed over microbatches before division", "mambaout_jax/train/step.py",
        "more_gradient = grad_fn(params, batch_stats, *microbatch, denominators)",
        "more_gradient = grad_fn(params, batch_stats, *microbatch, None)",
        ("tests/train/test_step.py", "-k", "accumulation or denominator"),
    ),
    "decay-mask": Mutant(
        "vectors get no weight decay", "mambaout_jax/train/optimizer.py",
        "leaf.ndim > 1 and", "leaf.ndim > 0 and",
        ("tests/train/test_optim.py",),
    ),
    "hosts": Mutant(
        "the global batch is the same for any number of hosts", "mambaout_jax/data/pipeline.py",
        "((self._first_batch + batch) * self._host_count + self._host_index) * self._rows + row",
        "((self._first_batch + batch) * self._rows + row) * self._host_count + self._host_index",
        ("tests/data/test_pipeline.py",),
    ),
    "epoch": Mutant(
        "every epoch has a new permutation", "mambaout_jax/data/pipeline.py",
        "np.random.default_rng((seed, epoch))", "np.random.default_rng((seed, 0))",
        ("tests/data/test_pipeline.py",),
    ),
    "mask": Mutant(
        "evaluation counts every image once", "mambaout_jax/data/pipeline.py",
        '"mask": np.bool_(example is not None),', '"mask": np.bool_(True),',
        ("tests/data/test_pipeline.py",),
    ),
    "groups": Mutant(
        "images are mixed within their group", "mambaout_jax/tasks/classification/mixing.py",
        "return grouped, grouped[:, ::-1]", "return grouped, grouped[::-1, ::-1]",
        ("tests/train/test_mixing.py",),
    ),
    "exact-match": Mutant(
        "weights match exactly, without unexpected keys", "mambaout_jax/weights/state_dict.py",
        'faults[name] = "is unexpected"', "continue",
        ("tests/weights/test_state_dict.py",),
    ),
    "layout": Mutant(
        "matrices are transposed between PyTorch and JAX", "mambaout_jax/models/key_format.py",
        '("weight", 2): permute(1, 0)', '("weight", 2): permute(0, 1)',
        ("tests/weights/test_state_dict.py",),
    ),
    "checkpoint-dtype": Mutant(
        "a checkpoint matches exactly or is rejected", "mambaout_jax/run/checkpoints.py",
        "            _check_fit(self._directory / str(step) / name, saved[name], tree)\n", "",
        ("tests/train/test_checkpoint.py",),
    ),
    "best": Mutant(
        "the best checkpoint follows the direction of the metric", "mambaout_jax/run/checkpoints.py",
        "return score if self._metric.higher_is_better else -score", "return score",
        ("tests/train/test_checkpoint.py",),
    ),
    "resume": Mutant(
        "a resumed run reads the batches after its step", "mambaout_jax/train/loop.py",
        "setup.train_source, start_step=step)", "setup.train_source, start_step=0)",
        ("tests/train/test_loop.py", "-k", "killed_and_resumed"),
    ),
    "stop": Mutant(
        "all processes stop after the same step", "mambaout_jax/distributed/hosts.py",
        "self._last = max(map(int,", "self._last = min(map(int,",
        ("tests/distributed/test_hosts.py",),
    ),
    "exit-code": Mutant(
        "user errors have exit code 2", "mambaout_jax/run/errors.py",
        "return print_error(error)", "return print_error(error, 1)",
        ("tests/train/test_errors.py",),
    ),
    "lock": Mutant(
        "a lock excludes other processes", "mambaout_jax/process.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        ("tests/test_process.py",),
    ),
    "changeable-keys": Mutant(
        "a changed config is not resumed silently", "mambaout_jax/run/config.py",
        "if ours.get(name) != theirs.get(name) and name not in changeable",
        "if name not in changeable and name not in theirs",
        ("tests/train/test_config.py", "-k", "counts_as_a_change"),
    ),
}  # fmt: skip


def run_tests(checkout: Path, tests: tuple[str, ...]) -> bool:
    """Run tests in a checkout, without the slow ones, and return whether all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not torch"]
    done = subprocess.run([*command, *tests], cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest cannot run {' '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def try_mutant(checkout: Path, mutant: Mutant) -> str:
    """Return "caught", "SURVIVES", or the reason why the mutant could not be tested."""
    path = checkout / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        return f"NOT UNIQUE: {mutant.old!r} occurs {source.count(mutant.old)} times"
    if not run_tests(checkout, mutant.tests):
        return "TESTS FAIL without the mutant"
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        return "SURVIVES" if run_tests(checkout, mutant.tests) else "caught"
    finally:
        path.write_text(source)


def main() -> int:
    """Test the mutants, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(MUTANTS), metavar="NAME")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = args.only or list(MUTANTS)
    if args.list:
        print("\n".join(f"{name:<18} {MUTANTS[name].invariant}" for name in chosen))
        return 0
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        for name in COPIED:
            place = ROOT / name
            shutil.copytree(place, checkout / name) if place.is_dir() else shutil.copy(place, checkout / name)
        for name in chosen:
            outcome = try_mutant(checkout, MUTANTS[name])
            bad += outcome != "caught"
            print(f"{name:<18} {MUTANTS[name].invariant:<64} {outcome}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} caught")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
