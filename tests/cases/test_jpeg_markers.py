"""The parser of JPEG markers follows the specification, and no bytes make it fail or change a picture."""

import io

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError, TrainTransform, decode

WIDTH, HEIGHT = 120, 160
TRANSFORMS = {
    pipeline: TrainTransform((48, 48), crop="random_resized", scale=(0.05, 0.4), pipeline=pipeline)
    for pipeline in ("exact", "fast")
}


def jpeg(**options):
    noise = np.random.default_rng(0).integers(0, 256, (10, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "JPEG", **options)
    return file.getvalue()


def marker_offsets(image):
    """Return the offsets of the markers before the scan."""
    offsets, offset = [], 2
    while True:
        assert image[offset] == 0xFF
        offsets.append(offset)
        if image[offset + 1] == decode.START_OF_SCAN:
            return offsets
        offset += 2 + int.from_bytes(image[offset + 2 : offset + 4], "big")


WHOLE = jpeg(quality=80, comment=b"one")
FORMS = {
    **{
        f"{count} fill bytes before marker {number}": WHOLE[:offset] + b"\xff" * count + WHOLE[offset:]
        for number, offset in enumerate(marker_offsets(WHOLE))
        for count in (1, 2, 7)
    },
    "fill bytes before every marker": b"".join(
        WHOLE[start:end] + b"\xff"
        for start, end in zip([0, *marker_offsets(WHOLE)], [*marker_offsets(WHOLE), None], strict=True)
    )[:-1],
    "a segment that looks like a frame header": WHOLE[:2]
    + b"\xff\xe5\x00\x0c\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03"
    + WHOLE[2:],
    "an empty segment": WHOLE[:2] + b"\xff\xfe\x00\x02" + WHOLE[2:],
    "progressive": jpeg(progressive=True),
    "restarts": jpeg(restart_marker_rows=1),
    "bytes after the end": WHOLE + b"\xff\xd9",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_legal_form_of_a_file_gives_the_pixels_of_the_whole_decoder(form):
    image = FORMS[form]
    whole = decode.decode_fast(image)
    assert np.abs(whole.astype(int) - np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))).mean() < 3
    for rows in (1, 16, 40, 100, HEIGHT - 1):
        shortened = decode.decode_fast(image, rows=rows)
        np.testing.assert_array_equal(shortened[:rows], whole[:rows])


@pytest.mark.parametrize("form", [form for form in FORMS if "marker" in form])
def test_a_file_with_fill_bytes_is_shortened(form):
    assert decode._shorten(FORMS[form], HEIGHT, 20) is not None


def test_no_damage_gives_another_error_than_bad_data():
    rng = np.random.default_rng(0)
    header = marker_offsets(WHOLE)[-1]
    for number in range(400):
        image = bytearray(WHOLE)
        for _ in range(rng.integers(1, 6)):
            image[rng.integers(2, header)] = rng.choice([0xFF, 0x00, 0xC0, 0xC4, 0xDA, 0x01, rng.integers(256)])
        if number % 4 == 0:
            cut = rng.integers(2, len(image))
            image = image[:cut] + b"\xff\xd9"
        decode._shorten(bytes(image), HEIGHT, 20)  # raises nothing
        try:
            TRANSFORMS["fast"](bytes(image), np.random.default_rng(number))
        except DataError:
            with pytest.raises(DataError):
                TRANSFORMS["exact"](bytes(image), np.random.default_rng(number))
