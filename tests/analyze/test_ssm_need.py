"""The criterion agrees with the paper on its datasets, and the page contains every row."""

import math
import re

import pytest
from matplotlib.figure import Figure
from PIL import Image

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.analyze import formulas
from mambaout_jax.analyze import page as ssm_need_page
from mambaout_jax.analyze.ssm_need import DATASETS, GATED_CNN, analyze, answer, length_verdict
from mambaout_jax.models import ModelError, ScanInfo
from mambaout_jax.run.errors import RunError
from tests.models import golden
from tests.toy import model as toy


@pytest.fixture
def without_pictures(monkeypatch):
    """Leave out the pictures of pages, which take seconds to draw."""
    monkeypatch.setattr(ssm_need_page, "_picture", lambda kind, *_: {"title": kind, "svg": ""})


def test_of_the_papers_datasets_imagenet_is_short_and_the_others_are_long_or_near():
    rows = analyze()["rows"]
    found = [(row["dataset"], row["channels"], row["tokens"], row["threshold"], row["verdict"]) for row in rows]
    assert found == [
        ("imagenet", 384, 196, 2304, "short"),
        ("imagenet", 768, 196, 4608, "short"),
        ("coco", 384, 4000, 2304, "long"),
        ("coco", 768, 4000, 4608, "near"),
        ("ade20k", 384, 4096, 2304, "long"),
        ("ade20k", 768, 4096, 4608, "near"),
    ]
    assert [round(row["ratio"], 3) for row in rows] == [0.085, 0.043, 1.736, 0.868, 1.778, 0.889]


@pytest.mark.parametrize(
    ("tokens", "verdict"), [(1, "short"), (431, "short"), (432, "near"), (576, "near"), (768, "near"), (769, "long")]
)
def test_verdict_turns_at_three_quarters_and_four_thirds_of_the_threshold(tokens, verdict):
    assert length_verdict(96, tokens) == verdict


def test_a_model_has_a_row_for_each_stage_at_its_own_size():
    model, analysis = mo.create_model("test_mambaout"), analyze("test_mambaout")
    assert [(row["channels"], row["stride"]) for row in analysis["rows"]] == list(map(tuple, model.feature_info))
    assert {(row["height"], row["width"], row["dataset"]) for row in analysis["rows"]} == {(160, 160, None)}
    assert [row["tokens"] for row in analysis["rows"]] == [1600, 400, 100, 25]


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (["short"], "Short: no SSM needed."),
        (["near", "near"], "Near the threshold: an SSM may be worth exploring."),
        (["long"], "Long: an SSM is worth exploring."),
        (["near", "short"], "Near the threshold in some cases: an SSM may be worth exploring there."),
        (["short", "long", "near"], "Long in some cases: an SSM is worth exploring there."),
        (["long", "short"], "Long in some cases: an SSM is worth exploring there."),
    ],
)
def test_strongest_verdict_decides_the_answer(verdicts, sentence):
    assert answer(verdicts) == sentence


@pytest.mark.slow
def test_gated_cnn_is_counted_as_the_model_has_it_and_as_published_for_others():
    plain = {"kernel_size": 7, "expansion_ratio": 8 / 3, "conv_ratio": 1.0}
    for model, options in (
        ("mambaout_base_wide_rw", {**plain, "expansion_ratio": 3.0, "conv_ratio": 1.5}),
        ("mambaout_femto", plain),
        ("vit_tiny_patch16_224", plain),
        (None, plain),
    ):
        analysis = analyze(model, size=(64, 64))
        assert analysis["gated_cnn"] == options
        for row in analysis["rows"]:
            terms = formulas.gated_cnn_block_flops(row["channels"], row["tokens"], **options)
            assert row["flops"]["gated_cnn"] == {"total": sum(terms.values()), **terms}


@pytest.mark.parametrize(("model", "directions"), [("mamba_tiny", 1), ("test_mambaout", 0)])
def test_a_model_with_an_ssm_is_counted_with_it(model, directions, tmp_path, without_pictures):
    analysis = analyze(model, size=(64, 64))
    assert analysis["directions"] == directions
    page = ssm_need_page.write_page(analysis, tmp_path).read_text()
    assert ("Gated CNN + SSM" in page) == bool(directions)
    for row in analysis["rows"]:
        assert ("gated_cnn_ssm" in row["flops"]) == bool(directions)
        if directions:
            found, cnn = row["flops"]["gated_cnn_ssm"], row["flops"]["gated_cnn"]
            # R = D / 16 and 16 states.
            rank = math.ceil(row["channels"] / 16)
            projections = 2 * row["tokens"] * row["channels"] * (rank + 2 * 16 + rank)
            scan = row["tokens"] * row["channels"] * (7 * 16 + 3)
            assert found["x_proj"] + found["dt_proj"] == projections
            assert found["total"] == cnn["total"] + projections + scan
            assert f"<td>{found['total'] / 1e9:.3f}</td>" in page


@pytest.mark.parametrize("name", golden.small_models())
def test_the_scans_of_every_stage_are_those_of_the_model(name):
    base, options = golden.small_models()[name]
    analysis = analyze(mo.create_model(base, **options))
    expected = golden.scans_of(name)
    assert [list(row["scans"].values()) for row in analysis["rows"]] == expected
    assert analysis["directions"] == max(directions for directions, *_ in expected)
    assert analysis["model"] == base
    for row, (directions, channels, states) in zip(analysis["rows"], expected, strict=True):
        assert ("gated_cnn_ssm" in row["flops"]) == bool(analysis["directions"])
        if directions:
            terms = row["flops"]["gated_cnn_ssm"]
            assert terms["scan"] == row["tokens"] * directions * channels * (7 * states + 3)


@pytest.mark.parametrize(
    ("model", "directions"),
    [
        *(("vim_tiny", 2), ("localvim_tiny", 4), ("vmamba_tiny_s1l8", 4), ("localvmamba_tiny", 4)),
        *(("plainmamba_l1", 4), ("mambavision_t", 1), ("vit_tiny_patch16_224", 0), ("mambaout_femto", 0)),
        *((mo.create_model("mamba_femto", scan_order=order), n) for order, n in (("bidirectional", 2), ("cross", 4))),
        (mo.create_model("vim_tiny", bimamba_type="none"), 1),
    ],
)
def test_directions_are_those_of_the_paper(model, directions):
    assert analyze(model)["directions"] == directions


def test_a_model_of_another_package_without_scans_has_none(monkeypatch):
    monkeypatch.setattr(plugins, "provided", lambda attribute: (toy.FAMILY,))
    assert analyze("spotter_small")["directions"] == 0


def test_every_direction_of_a_scan_counts():
    options = {"kernel_size": 7, "expansion_ratio": 8 / 3, "conv_ratio": 1.5}
    none, one, four = (
        formulas.gated_cnn_block_flops(32, 9, scans=scans, **options)
        for scans in (None, ScanInfo(1, 48, 16), ScanInfo(4, 48, 16))
    )
    for term in ("x_proj", "dt_proj", "scan"):
        assert four[term] == 4 * one[term]
        assert term not in none


def test_the_picture_has_a_line_for_the_block_with_an_ssm():
    lines = {}
    for directions in (0, 1, 4):
        axes = Figure().add_subplot()
        ssm_need_page._draw_flops(GATED_CNN, ScanInfo(directions, 96, 16), axes, 96, [64, 256])
        lines[directions] = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines()}
    assert "Gated CNN + SSM" not in lines[0]
    one, four = (lines[directions]["Gated CNN + SSM"] - lines[0]["Gated CNN"] for directions in (1, 4))
    assert four == pytest.approx(4 * one)


@pytest.mark.run
def test_page_has_the_gated_cnn_of_the_model(tmp_path):
    names = ("mambaout_base_wide_rw", "mambaout_base")
    wide, plain = (ssm_need_page.write_page(analyze(name, size=(64, 64)), tmp_path / name) for name in names)
    assert (
        "hidden width 3.00 D, 7 \N{MULTIPLICATION SIGN} 7 depthwise convolution of 1.5 D channels" in wide.read_text()
    )
    assert "hidden width 2.67 D, 7 \N{MULTIPLICATION SIGN} 7 depthwise convolution of 1 D channels" in plain.read_text()
    assert (wide.parent / "flops_128.png").read_bytes() != (plain.parent / "flops_128.png").read_bytes()


def test_size_and_dataset_set_the_images():
    assert [row["tokens"] for row in analyze("test_mambaout", size=(32, 70))["rows"]] == [8 * 18, 4 * 9, 2 * 5, 3]
    for dataset, size in DATASETS.items():
        assert {(row["height"], row["width"]) for row in analyze("test_mambaout", dataset=dataset)["rows"]} == {size}


def test_totals_are_sums_of_the_formulas_terms():
    for row in analyze("test_mambaout")["rows"]:
        for terms in row["flops"].values():
            assert terms["total"] == sum(value for name, value in terms.items() if name != "total") > 0
        assert row["flops"]["mamba"]["total"] == sum(
            formulas.mamba_block_flops(row["channels"], row["tokens"]).values()
        )
        assert row["memory"]["cache"] == 2 * row["channels"] * row["tokens"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": "imagnet"}, RunError, "'imagnet' is not a known dataset; did you mean 'imagenet'"),
        ({"dataset": "coco", "size": (1, 1)}, RunError, "are mutually exclusive; use one"),
        ({"size": (0, 5)}, RunError, "--size is 0x5"),
        ({"model": "mambaout_tinny"}, ModelError, "did you mean 'mambaout_tiny'"),
    ],
)
def test_what_is_unknown_is_one_sentence(arguments, error, message):
    with pytest.raises(error, match=message):
        analyze(**arguments)


@pytest.mark.slow
def test_page_is_one_file_with_every_row_and_a_picture_of_each_kind_for_each_width(tmp_path):
    analysis = analyze("test_mambaout")
    page = ssm_need_page.write_page(analysis, tmp_path / "new" / "out")
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!#)[^"]', text)
    for row in analysis["rows"]:
        assert f"<td>{row['stage']}</td><td>{row['channels']}</td>" in text
        for kind in ("flops", "memory"):
            with Image.open(page.parent / f"{kind}_{row['channels']}.png") as image:
                assert min(image.size) > 400
    assert text.count("<svg") == 2 * 4
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "Long in some cases" in text
    assert "The paper considers whole ViTs of one width" in text


@pytest.mark.run
def test_page_is_the_same_each_time_and_shows_lengths_beyond_its_usual_axis(tmp_path):
    analysis = analyze("test_mambaout", size=(2000, 2000))
    assert max(row["tokens"] for row in analysis["rows"]) > 4**8
    first, second = (ssm_need_page.write_page(analysis, tmp_path / name).read_bytes() for name in "ab")
    assert first == second
    assert b"262,144" in first


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"dataset": "imagenet"}, "Short: no SSM needed."),
        ({"size": (4096, 4096)}, "Long: an SSM is worth exploring."),
        (
            {"model": "mambaout_femto", "size": (64, 64)},
            "Near the threshold in some cases: an SSM may be worth exploring there.",
        ),
    ],
)
def test_page_answers_first(tmp_path, without_pictures, arguments, answer):
    assert f'<p class="answer">{answer}</p>' in ssm_need_page.write_page(analyze(**arguments), tmp_path).read_text()


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=f"{tmp_path}/file/x is not writable .*--out"):
        ssm_need_page.write_page(analyze(dataset="imagenet"), tmp_path / "file" / "x")
