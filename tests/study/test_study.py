"""A study trains variants on equal data, resumes where it stopped, and claims no more than the data show."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError
from mambaout_jax.run.config import flatten_config
from mambaout_jax.run.errors import RunError, StoppedError
from mambaout_jax.study.study import find_experiment, run_study, warn_about_shrinking
from mambaout_jax.study.table import comparison_rows, macs, mebibytes, milliseconds, percent, points
from mambaout_jax.tasks.classification import task as classification
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.train.inputs import open_batches
from tests.study.study_runs import MODEL, SCORES, VARIANTS, Training, settings
from tests.train import tiny
from tests.train.finished_run import Tags, words


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def experiment(data_dir):
    return settings(data_dir)


@pytest.fixture
def training(monkeypatch):
    return Training(monkeypatch)


@pytest.fixture
def study(training, experiment, tmp_path):
    return run_study(experiment, tmp_path / "study", 3)


@pytest.mark.slow
def test_variants_of_a_repeat_differ_in_nothing_but_their_model(study, training):
    assert set(training.configs) == {(variant.name, repeat) for variant in VARIANTS for repeat in range(3)}
    for variant in VARIANTS:
        for repeat in range(3):
            config = dict(training.configs[variant.name, repeat].values)
            model = {key.removeprefix("model."): config.pop(key) for key in list(config) if key.startswith("model.")}
            assert model == variant.model
            base = training.configs["conv", repeat].values
            assert config == {key: value for key, value in base.items() if not key.startswith("model.")}


@pytest.mark.slow
def test_variants_see_the_same_batches_and_repeats_others(study, training):
    def first(name, repeat):
        batch = next(open_batches(training.configs[name, repeat]))
        return batch["image"], batch["label"]

    for mine, theirs in zip(first("conv", 1), first("matched-vit-full", 1), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (first("conv", 0)[1] != first("conv", 1)[1]).any()


def test_each_repeat_has_a_seed_and_a_fold_and_none_the_validation_split(study, training):
    runs = [training.configs["conv", repeat] for repeat in range(3)]
    assert [run.seed for run in runs] == [0, 1, 2]
    assert [run.data.validation_split for run in runs] == ["train[0:479]", "train[479:958]", "train[958:1437]"]
    assert runs[1].data.train_split == "train[0:479]+train[958:1437]"
    assert study["repeats"][1] == {"seed": 1, "train": runs[1].data.train_split, "test": "train[479:958]", "steps": 210}


def test_seeds_start_at_the_one_of_the_config(training, data_dir, tmp_path):
    run_study(settings(data_dir, seed=7), tmp_path / "study", 2)
    assert [training.configs["conv", repeat].seed for repeat in range(2)] == [7, 8]


def test_a_stopped_study_resumes_and_repeats_no_run(training, experiment, tmp_path):
    training.stop_after, training.error = 5, StoppedError("stopped by SIGTERM")
    with pytest.raises(StoppedError):
        run_study(experiment, tmp_path / "study", 3)
    training.stop_after = None
    free = experiment.replace({"log_every_steps": 3, "resume": "any", "data.eval_sets": "imagenet_a"})
    assert run_study(free, tmp_path / "study", 3)["variants"][0]["scores"] == SCORES["conv"]
    assert len(training.configs) == 12


@pytest.mark.parametrize(
    ("changes", "seeds", "told"),
    [
        ({"optim.learning_rate": 0.5}, 3, r"config.optim.learning_rate was 0.002, is 0.5"),
        ({"seed": 1}, 3, "config.seed was 0, is 1"),
        ({"data.train_split": "train[:700]"}, 3, "config.data.train_split was 'train', .*; fingerprint was"),
        ({}, 2, "seeds was 3, is 2"),
    ],
)
def test_other_settings_in_the_same_workdir_are_refused(study, training, data_dir, tmp_path, changes, seeds, told):
    with pytest.raises(RunError, match=f"study contains a study with other settings: .*{told}.*; use another"):
        run_study(settings(data_dir, **changes), tmp_path / "study", seeds)
    assert len(training.configs) == 12


def test_a_folder_of_something_else_is_refused(training, experiment, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="has files but no study"):
        run_study(experiment, tmp_path, 3)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan.json is not the plan of a study"):
        run_study(experiment, tmp_path, 3)
    with pytest.raises(RunError, match=r"is not writable .*; use another --workdir"):
        run_study(experiment, tmp_path / "plan.json", 3)
    assert not training.configs


def test_given_weights_are_refused(training, experiment, tmp_path):
    with pytest.raises(RunError, match=r"config.init_from is set, .* unset it"):
        run_study(experiment.replace({"init_from": "runs/x"}), tmp_path / "study", 3)
    assert not (tmp_path / "study").exists()


def test_an_experiment_is_found_by_the_name_of_the_dataset():
    assert find_experiment("digits") == "study:digits"
    assert find_experiment("pathfinder/32") == "study:pathfinder"


def test_an_experiment_of_another_task_is_found_by_both_names():
    assert find_experiment("scenes/cue_128", "segmentation") == "study:scenes_segmentation"
    with pytest.raises(RunError, match=r"'scenes' has no experiment for classification; add --task segmentation"):
        find_experiment("scenes")
    with pytest.raises(RunError, match=r"'digits' has no experiment for segmentation; add --task classification"):
        find_experiment("digits", "segmentation")
    with pytest.raises(
        RunError, match=r"'voc' and segmentation; .*replace --task segmentation with --config=.*:scenes_segmentation$"
    ):
        find_experiment("voc", "segmentation")
    with pytest.raises(TaskError, match=r"did you mean 'segmentation'"):
        find_experiment("scenes", "segmentaton")


def test_findings_are_those_of_the_runs(study):
    conv, removed, _, vit = study["variants"]
    assert conv["scores"] == SCORES["conv"]
    assert conv["interval"]["mean"] == pytest.approx(91.5)
    assert conv["step_seconds"] == pytest.approx(0.25)  # the median of 0.125, 0.25 and 9
    assert (vit["params"], vit["macs"], vit["memory_bytes"]) == (5_444, 7_654_321, 10_000_009)
    difference = study["comparisons"][0]["differences"][0]
    assert difference["variant"] == removed["name"]
    assert difference["values"] == [2.0, 2.125, 1.875]
    # Mean 2, sd 0.125; t of 97.5 % with 2 degrees 4.302653; 1/3 + 1/2.
    half = 4.302653 * 0.125 * (5 / 6) ** 0.5
    assert [difference[key] for key in ("mean", "low", "high")] == pytest.approx([2, 2 - half, 2 + half], rel=1e-6)
    assert [len(comparison["differences"]) for comparison in study["comparisons"]] == [1, 2]


def test_answer_and_verdicts_name_significant_and_other_variants(study):
    removed, matched = study["comparisons"]
    assert removed["verdict"] == "Better than convolution alone: SSM (causal)."
    assert matched["verdict"] == (
        "Worse than convolution alone: ViT (full). Not significantly different from convolution alone: SSM (causal)."
    )
    assert study["answer"] == (
        "Better than convolution alone at equal widths: SSM (causal). At equal parameters, no SSM is significantly "
        "better than convolution alone."
    )


@pytest.mark.parametrize(
    ("scores", "answer"),
    [
        (
            {"removed-ssm-causal": [90.5, 91.5, 92.5]},
            r"No SSM is significantly better .* minimum detectable effect is \d+.\d\d points",
        ),
        (
            {"matched-ssm-causal": [95.25, 96.5, 97.875]},
            r"^Better than .* at equal parameters: SSM \(causal\); at equal widths: SSM \(causal\).$",
        ),
        (
            {name: [9.0, 10.0, 11.5] for name in SCORES},
            r"^No variant is significantly better than the majority baseline of 10\.\d\d % .* use more seeds\.$",
        ),
        # Differences of 2, 2.5 and 1.5 have p = 0.049, significant in a single test and not as one of two.
        (
            {"removed-ssm-causal": [92.25, 94.0, 94.25]},
            r"No SSM is significantly better .* better only in the tables below .* for 2 tests\. .*detectable",
        ),
        (
            {"removed-ssm-causal": SCORES["conv"], "matched-ssm-causal": [91.25, 92.5, 93.75]},
            r"No SSM is significantly better .* the repeats have no spread, so the tests have no known power\.$",
        ),
        (
            {"matched-vit-full": [95.25, 96.5, 97.875], "removed-ssm-causal": SCORES["conv"]},
            "No SSM is significantly better",
        ),
    ],
)
def test_the_answer_is_about_the_ssm_and_no_more_than_the_data_show(monkeypatch, experiment, tmp_path, scores, answer):
    Training(monkeypatch, {**SCORES, **scores})
    assert re.search(answer, run_study(experiment, tmp_path / "study", 3)["answer"])


WRITTEN = {
    "scores": percent, "low": percent, "high": percent, "mean": percent, "values": points,
    "minimum_detectable_effect": percent, "majority_baseline": percent, "ratio": percent,
    "macs": macs, "memory_bytes": mebibytes, "step_seconds": milliseconds,
}  # fmt: skip


def numbers(content, key=None, differs=False):
    """Yield each number of study.json as formatted on the page."""
    if isinstance(content, dict):
        for name, item in content.items():
            yield from numbers(item, name, differs or "minimum_detectable_effect" in content)
    elif isinstance(content, list):
        for item in content:
            yield from numbers(item, key, differs)
    elif isinstance(content, int | float) and key not in ("significant", "has_ssm", "improves"):
        write = points if differs and key in ("mean", "low", "high") else WRITTEN.get(key)
        yield write(content) if write else f"{content:,}"


def test_page_has_every_number_and_sentence(study, tmp_path):
    assert json.loads((tmp_path / "study" / "study.json").read_text()) == json.loads(json.dumps(study))
    page = (tmp_path / "study" / "study.html").read_text()
    text = words(page)
    found = list(numbers({**study, "metric": None}))
    assert len(found) > 70
    assert not [number for number in found if not re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", text)]
    for sentence in (study["answer"], *(comparison["verdict"] for comparison in study["comparisons"])):
        assert sentence in text
    for option, value in flatten_config(MODEL).items():
        assert f"{option} {value}" in text


def test_the_majority_baseline_is_the_largest_class(monkeypatch):
    task = tiny.config().build_task()
    labels = [0] * 30 + [1] * 50 + [2] * 20
    assert task.baseline_score([{"label": label} for label in labels]) == 50
    many = [{"label": int(index % 7 < 2)} for index in range(10_000)]
    reads = []
    monkeypatch.setattr(classification, "MAX_LABELS", 1_000)

    class Source(list):
        def __getitem__(self, index):
            reads.append(index)
            if index == 0:
                raise DataError("damaged")
            return super().__getitem__(index)

    assert task.baseline_score(Source(many)) == pytest.approx(100 * 5 / 7, abs=2)
    assert len(reads) == 1_000


def test_unreadable_records_alone_are_one_sentence():
    class Source(list):
        def __getitem__(self, index):
            raise DataError("record is damaged")

    with pytest.raises(TaskError, match=r"none of 3 training records can be read \(record is damaged\)"):
        tiny.config().build_task().baseline_score(Source([0] * 3))


def test_length_of_the_first_stage_is_measured(study):
    # 32 px at stride 4, 8 channels.
    first = study["first_stage"]
    assert (first["tokens"], first["threshold"], first["verdict"]) == (64, 48, "near")


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((32, 32), "The first image has 40x64 px and is resized to 32x32 (config.model.img_size).\n"),
        ((40, 48), "The first image has 40x64 px and is resized to 40x48 (config.model.img_size).\n"),
        ((40, 64), ""),
        ((96, 96), ""),
    ],
)
def test_images_larger_than_the_input_size_are_a_warning(capsys, size, told):
    file = io.BytesIO()
    Image.new("L", (64, 40)).save(file, "PNG")
    warn_about_shrinking([{"image": file.getvalue()}], size)
    assert capsys.readouterr().err == told


def test_an_image_that_cannot_be_read_is_left_to_training(capsys):
    warn_about_shrinking([{"image": b"damaged"}], (32, 32))
    assert not capsys.readouterr().err


def test_intervals_are_shown_where_accuracies_can_lie(monkeypatch, experiment, tmp_path):
    Training(monkeypatch, {**SCORES, "conv": [93.0, 96.0, 99.0], "matched-vit-full": [1.0, 4.0, 7.0]})
    found = run_study(experiment, tmp_path / "study", 3)
    assert found["variants"][0]["interval"]["high"] > 100
    rows = comparison_rows(found, found["comparisons"][1])
    assert rows[0][2].endswith(" to 100.00")
    assert rows[-1][2].startswith("0.00 to ")
    assert "to 100.00" in words((tmp_path / "study" / "study.html").read_text())


def test_page_is_one_file_of_well_formed_html(study, tmp_path):
    page = (tmp_path / "study" / "study.html").read_text()
    tags = Tags(page)
    assert not tags.open
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in tags.found}
    assert "url(" not in page
    assert "@import" not in page
    drawn = {
        kind: [attributes for _, attributes in tags.found if attributes.get("class") == kind]
        for kind in ("dot", "interval", "mean")
    }
    # In each comparison the accuracy of every model, and the difference of all but the first, with three repeats each.
    assert {kind: len(marks) for kind, marks in drawn.items()} == {"dot": 24, "interval": 8, "mean": 8}
    places = [float(mark[x]) for marks in drawn.values() for mark in marks for x in ("cx", "x1", "x2") if x in mark]
    assert all(0 <= place <= 480 for place in places)
    for mean, line in zip(drawn["mean"], drawn["interval"], strict=True):
        assert float(mean["x1"]) == pytest.approx((float(line["x1"]) + float(line["x2"])) / 2, abs=0.11)
