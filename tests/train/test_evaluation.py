"""Every set is scored by its paper's protocol, each image once, and printed with its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mambaout_jax import distributed
from mambaout_jax.data import DataError, EvalTransform
from mambaout_jax.evaluate import evaluation
from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.evaluate.scores import format_scores
from mambaout_jax.ops import normalize_images
from mambaout_jax.run.signals import StopSignals
from mambaout_jax.tasks.classification.eval_sets import EVAL_SETS, open_eval_set
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.tasks.errors import TaskError
from tests.data import small_eval_sets
from tests.train import written_run

LABELS = {
    "imagenet2012": [5, 7, 7, 300, 12, 0, 999],
    "imagenet_v2": [1, 2, 3],
    "imagenet2012_real": [[], [2], [1, 999], [7, 8, 9, 10], []],
    "imagenet_a": [7, 5, 40, 41, 42, 43, 44, 45],
    "imagenet_r": [0, 3],
    "imagenet_sketch": [4, 5, 6, 7, 8],
}
ALL = ",".join(LABELS)
TASK = Classification.name


@pytest.fixture(scope="module")
def sets_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    tfds.disable_progress_bar()
    for name, labels in LABELS.items():
        options = {"config": "matched-frequency"} if name == "imagenet_v2" else {}
        small_eval_sets.write(name, folder, labels, broken=[3] if name == "imagenet_sketch" else [], **options)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, sets_dir):
    """A workdir, its config, model and weights."""
    workdir = tmp_path_factory.mktemp("evaluation") / "run"
    changes = {
        "data.name": "imagenet2012",
        "data.data_dir": sets_dir,
        "data.validation_split": "validation",
        "data.on_bad_record": "skip",
        "model.in_chans": 3,
        "eval_batch_size": 4,
    }
    return workdir, *written_run.write(workdir, small_eval_sets.NAMES, favourites=(7, 2, 3, 999, 5), **changes)


def config_of(run, **changes):
    return run[1].replace(changes)


@pytest.fixture(scope="module")
def scored(run):
    """The results of all sets by name, and the same results as they were returned."""
    record = evaluate(config_of(run, **{"data.eval_sets": ALL}), run[0])
    return {result["dataset"].partition("/")[0]: result for result in record["sets"]}, record


def score_by_hand(run, source, view=None, classes=range(1000)):
    """Score the EMA weights image by image: top-1, top-5 in percent, loss, count."""
    _, _, model, weights = run
    view = view or EvalTransform(size=(32, 32))
    classes, hits, losses = np.asarray(classes), [], []
    apply = jax.jit(lambda image: model.apply(weights["ema"], normalize_images(image, *model.input_spec[:2])))
    for record in source:
        labels = set(np.atleast_1d(record["label"]).astype(int).tolist())
        try:
            image = view(record["image"])
        except DataError:
            continue
        if not labels:
            continue
        row = np.asarray(apply(jnp.asarray(image)[None])[0], np.float64)[classes]
        order = classes[np.argsort(-row, kind="stable")].tolist()
        hits.append((order[0] in labels, bool(labels & set(order[:5]))))
        log_odds = dict(zip(classes.tolist(), row - np.log(np.exp(row - row.max()).sum()) - row.max(), strict=True))
        losses.append(-np.mean([log_odds[label] for label in labels]))
    top1, top5 = 100 * np.mean(hits, axis=0)
    return {"top1": top1, "top5": top5, "loss": np.mean(losses), "count": len(hits)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELS)
def test_scores_equal_those_by_hand(run, scored, sets_dir, name):
    classes = LABELS[name] if EVAL_SETS[name].subset else range(1000)
    expected = score_by_hand(run, open_eval_set(name, sets_dir), classes=sorted(classes))
    assert scored[0][name]["ema"] == pytest.approx(expected, rel=1e-4)


def test_some_images_are_hits_and_some_are_not(scored):
    top1, top5 = (sum(r["ema"][key] * r["ema"]["count"] for r in scored[0].values()) for key in ("top1", "top5"))
    assert 0 < top1 < top5 < 2700


@pytest.mark.slow
def test_subsets_are_easier_than_all_classes(run, scored, sets_dir):
    of_all = score_by_hand(run, open_eval_set("imagenet_a", sets_dir))
    assert scored[0]["imagenet_a"]["ema"]["loss"] < of_all["loss"]
    assert scored[0]["imagenet_a"]["ema"]["top5"] > of_all["top5"]
    assert (scored[0]["imagenet_a"]["ranked_classes"], scored[0]["imagenet_v2"]["ranked_classes"]) == (8, 1000)


def test_every_image_is_scored_once_or_counted_as_excluded(scored):
    counted = {name: (r["ema"]["count"], r["unlabeled"], r["skipped"]) for name, r in scored[0].items()}
    assert counted == {
        "imagenet2012": (7, 0, 0),
        "imagenet_v2": (3, 0, 0),
        "imagenet2012_real": (3, 2, 0),
        "imagenet_a": (8, 0, 0),
        "imagenet_r": (2, 0, 0),
        "imagenet_sketch": (4, 0, 1),
    }


@pytest.mark.slow
def test_validation_split_comes_first_and_a_set_named_twice_is_scored_once(run, scored):
    assert [result["dataset"] for result in scored[1]["sets"]][:2] == ["imagenet2012", "imagenet_v2/matched-frequency"]
    assert len(scored[1]["sets"]) == 6
    assert scored[1]["weights"] == f"step {written_run.STEP}"
    twice = evaluate(config_of(run, **{"data.eval_sets": "imagenet_r, imagenet_r,"}), run[0])
    assert [result["dataset"] for result in twice["sets"]] == ["imagenet2012", "imagenet_r"]
    assert twice["sets"][1]["ema"] == scored[0]["imagenet_r"]["ema"]


def test_each_row_of_the_table_names_dataset_split_weights_and_input(scored):
    lines = format_scores(scored[1]).splitlines()
    assert " ".join(lines[0].split()) == "dataset split weights input top-1 % top-5 % loss images excluded"
    rows = [line for line in lines if "crop" in line]
    assert len(rows) == 12
    assert all("32x32, crop 1.0 center" in row for row in rows)
    for name in LABELS:
        result = scored[0][name]
        raw, ema = (row.split() for row in rows if row.split()[0] == result["dataset"])
        for row, weights in ((raw, "raw"), (ema, "ema")):
            assert row[1:3] == [EVAL_SETS[name].split, weights]
            assert f"{result[weights]['top1']:.2f}" in row
            assert f"{result[weights]['loss']:.4f}" in row
    assert len({line.index("32x32") for line in rows}) == 1
    assert lines[13:] == [
        f"weights: step {written_run.STEP}",
        "imagenet2012_real: 2 images without a target excluded",
        "imagenet_a: restricted to the 8 of 1,000 classes that occur in it",
        "imagenet_r: restricted to the 2 of 1,000 classes that occur in it",
        "imagenet_sketch: 1 unreadable image excluded",
    ]


@pytest.mark.slow
def test_crop_of_the_config_is_what_is_scored_and_printed(run, scored, sets_dir):
    record = evaluate(config_of(run, **{"data.crop_pct": 0.5, "data.crop_mode": "squash"}), run[0])
    view = EvalTransform(size=(32, 32), crop_pct=0.5, crop_mode="squash")
    expected = score_by_hand(run, open_eval_set("imagenet2012", sets_dir), view)
    assert record["sets"][0]["ema"] == pytest.approx(expected, rel=1e-4)
    assert record["sets"][0]["ema"]["loss"] != pytest.approx(scored[0]["imagenet2012"]["ema"]["loss"], rel=1e-3)
    assert "32x32, crop 0.5 squash" in format_scores(record)


@pytest.mark.slow
def test_sets_with_equally_many_labels_share_a_program(run, monkeypatch):
    built = []
    compile_ = evaluation.Evaluator._compile
    monkeypatch.setattr(
        evaluation.Evaluator, "_compile", lambda self, *shapes: built.append(shapes) or compile_(self, *shapes)
    )
    evaluate(config_of(run, **{"data.eval_sets": ALL}), run[0])
    assert len(built) == 2, "one for single labels, one for several"


@pytest.mark.slow
def test_an_evaluator_compiles_at_its_first_use_and_changes_nothing_that_it_is_called_with(run, monkeypatch):
    workdir, config, model, weights = run
    built, compile_ = [], evaluation.Evaluator._compile
    monkeypatch.setattr(
        evaluation.Evaluator, "_compile", lambda self, *shapes: built.append(shapes) or compile_(self, *shapes)
    )
    files = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    before = jax.tree.map(np.array, weights)
    task, mesh = config.build_task(), distributed.make_mesh()
    source = task.open_source("validation")
    with StopSignals() as stop, jax.set_mesh(mesh):
        evaluator = evaluation.Evaluator(config, task, model, mesh=mesh, stop=stop)
        assert not built
        first, again = (evaluator(source, weights, predict="ema") for _ in range(2))
    assert len(built) == 1
    assert first.scores == again.scores
    assert first.predictions.keys() == again.predictions.keys()
    for name, array in first.predictions.items():
        np.testing.assert_array_equal(array, again.predictions[name])
    assert weights.keys() == before.keys()
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(old, new)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == files


@pytest.mark.slow
def test_a_batch_larger_than_the_split_takes_no_more_memory_than_the_split(run, monkeypatch):
    _, config, model, weights = run
    sizes, shapes = [], distributed.batch_shapes
    monkeypatch.setattr(distributed, "batch_shapes", lambda *args: sizes.append(args[1]) or shapes(*args))
    task, mesh = config.build_task(), distributed.make_mesh()
    source = task.open_source("validation")
    scores = []
    with StopSignals() as stop, jax.set_mesh(mesh):
        for size in (config.eval_batch_size, 2**31 - 1):
            changed = config.replace({"eval_batch_size": size})
            scores.append(evaluation.Evaluator(changed, task, model, mesh=mesh, stop=stop)(source, weights).scores)
    assert len(source) <= sizes[1] < 2 * len(source)
    assert scores[0]["ema"]["count"] == scores[1]["ema"]["count"] == len(source)
    assert scores[0]["ema"]["top1"] == scores[1]["ema"]["top1"]


def test_scores_of_training_are_laid_out_too():
    scores = {"top1": 50.0, "top5": 75.0, "loss": 1.25, "count": 4}
    view = {"input_size": [32, 48], "crop_pct": 0.9, "crop_mode": "center"}
    counts = {"num_classes": 10, "ranked_classes": 10, "skipped": 0, "unlabeled": 0}
    table = format_scores(
        {"task": TASK, "dataset": "d", "split": "test", **view, **counts, "raw": scores, "steps": 10}
    ).splitlines()
    assert table == [
        "dataset  split  weights  input                   top-1 %  top-5 %    loss  images",
        "d        test   raw      32x48, crop 0.9 center    50.00    75.00  1.2500       4",
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("imagenet_v3", f"config.data.eval_sets has 'imagenet_v3'; expected names from {', '.join(EVAL_SETS)}"),
        ("imagenet_v2/topimages", "'imagenet_v2/topimages' is not prepared .* run: python -m mambaout_jax prepare"),
    ],
)
def test_sets_that_are_not_there_are_named_before_anything_is_scored(run, monkeypatch, names, words):
    def score(*arguments, **options):
        raise AssertionError("it has begun")

    monkeypatch.setattr(evaluation, "Evaluator", score)
    with pytest.raises(DataError, match=words):
        evaluate(config_of(run, **{"data.eval_sets": f"imagenet_a,{names}"}), run[0])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (small_eval_sets.NAMES[:10], "dataset 'imagenet_r' has 10 classes but the model has 1000"),
        (
            small_eval_sets.NAMES[1:] + small_eval_sets.NAMES[:1],
            "class 0 is 'n01443537' in dataset 'imagenet_r' but 'n01440764' in the model",
        ),
    ],
)
def test_a_set_of_other_classes_is_refused(run, sets_dir, tmp_path, names, words):
    small_eval_sets.write("imagenet2012", tmp_path, LABELS["imagenet2012"])
    small_eval_sets.write("imagenet_r", tmp_path, [0, 3], names=names)
    with pytest.raises(TaskError, match=words):
        evaluate(config_of(run, **{"data.eval_sets": "imagenet_r", "data.data_dir": str(tmp_path)}), run[0])
