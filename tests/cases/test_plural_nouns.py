"""A number in a message agrees with its noun: "1 image", "2 images"."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What follows an expression and looks like a plural, alone or after an adjective: a word in -s, but neither a verb or
# preposition nor a rate.
PLURAL = re.compile(r" ([a-z]+s)\b(?!/)")
NO_ADJECTIVES = "of|in|on|to|for|and|or|at|with|from|is|was|has|are|were|have|the|its|per|by|as|than|that|which|not|x"
PLURAL_AFTER_ADJECTIVE = re.compile(rf" (?!(?:{NO_ADJECTIVES})\b)[a-z]+ ([a-z]*[a-rt-z]s)\b(?!/)")
OTHER_WORDS = {
    "is", "was", "has", "as", "requires", "takes", "lacks", "exists", "exceeds", "redefines", "changes", "plus",
    "does", "contains", "begins", "starts", "needs", "differs", "occurs", "responds", "maps", "convolves", "express",
    "means", "marks",
}  # fmt: skip
# Expressions that are names of something, or numbers that are never one.
ALLOWED = {
    ("models/layers/position.py", "num_patches"),  # differs from the grid, which has at least one
    ("models/localvim/model.py", "len(directions)"),  # a number other than NUM_DIRECTIONS
    ("models/localvim/model.py", "NUM_DIRECTIONS"),
    ("models/mambavision/model.py", "NUM_STAGES"),
    ("models/localvmamba/model.py", "ssm_ratio"),  # before the verb
    ("models/api.py", "self.num_params"),
    ("run/workdir.py", "self.weights"),  # "ema" or "raw"
    ("ops/selective_scan.py", "groups['B']"),  # `ops` imports no other package
    ("ops/selective_scan.py", "channels"),
    ("ops/selective_scan.py", "delta.size"),
    ("ops/selective_scan.py", "A.size"),
    ("ops/selective_scan.py", "x.ndim"),
    ("export/programs.py", "run.weights"),  # "ema" or "raw"
    ("export/torch.py", "run.weights"),  # "ema" or "raw"
    ("export/torch.py", "spec.size[1]"),  # at least 32
    ("tasks/classification/source.py", "image.np_dtype.name"),
    ("train/loop.py", "weights"),
}


def uncounted_nouns(package):
    """Yield the f-strings with an expression that is followed by a plural and is not `count(...)`."""
    for path in (package.parent / "main.py", *sorted(package.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, text in zip(node.values, node.values[1:], strict=False):
                if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                    continue
                word = PLURAL.match(text.value) or PLURAL_AFTER_ADJECTIVE.match(text.value)
                if word is None or word[1] in OTHER_WORDS or _is_fraction(value):
                    continue
                place = path.relative_to(package.parent).as_posix()
                expression = ast.unparse(value.value)
                if (place.removeprefix("mambaout_jax/"), expression) not in ALLOWED:
                    yield f"{place}:{value.lineno}: {{{expression}}} {word[1]}"


def _is_fraction(value):
    """Return whether a value is shown with decimals, which go with a plural."""
    spec = "" if value.format_spec is None else ast.unparse(value.format_spec)
    return re.search(r"\.[1-9]\d*[fg]", spec) is not None


def test_every_number_is_counted_with_its_noun():
    assert list(uncounted_nouns(ROOT / "mambaout_jax")) == []


def test_the_law_sees_numbers_without_count_and_leaves_rates_and_decimals(tmp_path):
    (tmp_path / "main.py").touch()
    (tmp_path / "package").mkdir()
    lines = [
        "f'{n} images'",
        "f'{len(x):,} epochs'",
        "f'{n:.1f} seconds'",
        "f'{n} images/s'",
        "f'{name} is here'",
        "f'{n} bad images'",
    ]
    (tmp_path / "package" / "a.py").write_text("\n".join(lines))
    found = [line.split(": ")[1] for line in uncounted_nouns(tmp_path / "package")]
    assert found == ["{n} images", "{len(x)} epochs", "{n} images"]
