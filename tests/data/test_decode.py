import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mambaout_jax.data import DataError, decode
from mambaout_jax.data.decode import decode_fast, decode_image, jpeg_size, to_array
from tests.data.photos import encode
from tests.data.pictures import gradient, textured


def save(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(textured(), "JPEG", exif=exif)


def subsampled(kind):
    return simplejpeg.encode_jpeg(np.asarray(textured(203, 149)), 90, "RGB", kind)


def corrupted():
    """Return a JPEG with damaged pixels, which Pillow decodes and simplejpeg refuses."""
    content = bytearray(save(textured(), "JPEG"))
    content[len(content) // 2 : len(content) // 2 + 30] = b"\x55" * 30
    return bytes(content)


YCBCR_AND_GREY = {
    **{f"sampled-{kind}": lambda kind=kind: subsampled(kind) for kind in ("444", "422", "420", "440", "411", "Gray")},
    "grey": lambda: save(textured().convert("L"), "JPEG"),
    "progressive": lambda: save(textured(), "JPEG", progressive=True, quality=95),
    "restart-markers": lambda: save(textured(), "JPEG", restart_marker_blocks=3),
    "rough": lambda: save(textured(), "JPEG", quality=20),
    "mpo": lambda: save(textured(), "MPO", save_all=True, append_images=[gradient()]),
    "exif-rotated": rotated,
    "odd": lambda: save(textured(97, 61), "JPEG"),
    "1x1": lambda: save(textured(1, 1), "JPEG"),
    "1x1-grey": lambda: save(textured(1, 1).convert("L"), "JPEG"),
    "trailing-bytes": lambda: save(textured(), "JPEG") + b"\0" * 99,
}
OTHERS = {
    "cmyk": lambda: save(textured().convert("CMYK"), "JPEG"),
    "rgb-jpeg": lambda: save(textured(), "JPEG", keep_rgb=True),
    "corrupted": corrupted,
    "palette": lambda: save(textured().quantize(32), "PNG"),
    "sixteen-bit": lambda: save(Image.fromarray(np.asarray(textured().convert("L")).astype(np.uint16) * 257), "PNG"),
    "alpha": lambda: save(textured().convert("RGBA"), "PNG"),
    "gif": lambda: save(textured(), "GIF"),
    "webp": lambda: save(textured(), "WEBP"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", (YCBCR_AND_GREY | OTHERS).values(), ids=YCBCR_AND_GREY | OTHERS)
def test_fast_decoding_equals_pillow(make, channels):
    content = make()
    fast, reference = decode_fast(content, channels), to_array(decode_image(content, channels))
    assert (fast.dtype, fast.shape, fast.flags.c_contiguous) == (np.uint8, reference.shape, True)
    np.testing.assert_array_equal(fast, reference)


@pytest.mark.parametrize("make", YCBCR_AND_GREY.values(), ids=YCBCR_AND_GREY)
def test_ordinary_jpegs_are_decoded_without_pillow(make, monkeypatch):
    size = decode_image(make()).size
    monkeypatch.setattr(decode, "decode_image", None)
    assert jpeg_size(make()) == size
    assert decode_fast(make(), 3).shape[1::-1] == size


def test_simplejpeg_refuses_damaged_files():
    with pytest.raises(ValueError, match="Corrupt JPEG"):
        simplejpeg.decode_jpeg(corrupted(), "RGB")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("least", "reduction"),
    [
        *[((0, 0), 1), ((149, 203), 1), ((75, 101), 1), ((0, 10), 1), ((300, 300), 1)],
        # Twice, four and eight times the minimum, and far more than that in one side or both.
        *[((74, 101), 2), ((37, 50), 4), ((18, 25), 8), ((38, 40), 2), ((10, 90), 2), ((1, 1), 8)],
    ],
)
def test_jpeg_is_reduced_by_the_largest_power_of_two_above_the_minimum_size(least, reduction, channels):
    content = save(textured(203, 149), "JPEG", quality=92)
    reduced = decode_fast(content, channels, *least)
    assert reduced.shape == (-(-149 // reduction), -(-203 // reduction), channels)
    whole = decode_image(content, channels).reduce(reduction) if reduction > 1 else decode_image(content, channels)
    # The low frequencies of a block are its mean and its slopes; averaging instead differs by this much.
    assert np.abs(reduced.astype(int) - to_array(whole)).mean() < 1.5


@pytest.mark.parametrize("rows", [1, 16, 40, 97, 140, 1000])
@pytest.mark.parametrize("make", (YCBCR_AND_GREY | OTHERS).values(), ids=YCBCR_AND_GREY | OTHERS)
def test_requested_rows_equal_pillow(make, rows):
    content = make()
    some, reference = decode_fast(content, 3, rows=rows), to_array(decode_image(content))
    np.testing.assert_array_equal(some[:rows], reference[:rows])


@pytest.mark.parametrize("rows", [1, 16, 40, 97, 140, 1000])
@pytest.mark.parametrize("make", YCBCR_AND_GREY.values(), ids=YCBCR_AND_GREY)
def test_requested_rows_of_a_reduced_image_equal_those_of_the_whole(make, rows):
    content = make()
    height = decode_image(content).height
    reduced, whole = decode_fast(content, 3, 20, 20, rows=rows), decode_fast(content, 3, 20, 20)
    rows_of_reduced = -(-rows * len(whole) // height)
    np.testing.assert_array_equal(reduced[:rows_of_reduced], whole[:rows_of_reduced])


@pytest.mark.parametrize("kind", ["444", "422", "420", "440", "411", "Gray"])
def test_rows_below_the_requested_ones_are_not_decoded(kind):
    assert len(decode_fast(subsampled(kind), 3, rows=30)) < 60


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_formats_that_simplejpeg_lacks_are_not_reduced(make):
    assert decode_fast(make(), 3, 10, 10).shape == (150, 200, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", save(textured(), "JPEG")[:5000], save(textured(), "JPEG")[:30], save(textured(), "PNG")[:-60]],
    ids=["zero-byte", "text", "truncated", "header-truncated", "png-truncated"],
)
def test_undecodable_bytes_are_named(content):
    for decoder in (decode_image, decode_fast):
        with pytest.raises(DataError, match="Pillow cannot decode the image"):
            decoder(content)


def test_truncated_jpeg_is_handled_like_pillow():
    content, refused = save(textured(64, 48), "JPEG"), 0
    for length in range(0, len(content), 5):
        try:
            reference = to_array(decode_image(content[:length]))
        except DataError:
            refused += 1
            for rows in (None, 10):
                with pytest.raises(DataError):
                    decode_fast(content[:length], rows=rows)
        else:
            np.testing.assert_array_equal(decode_fast(content[:length]), reference)
    assert refused > 0.9 * len(content) / 5


def test_image_above_pillows_limit_is_refused_by_both(monkeypatch):
    content = save(textured(), "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for decoder in (decode_image, decode_fast):
        with pytest.raises(DataError, match="DecompressionBomb"):
            decoder(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_eight_bit_gray_or_rgb(mode, channels):
    image = gradient().convert("L").convert("I").point(lambda v: v * 257) if mode in ("I", "I;16") else gradient()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif mode == "P":
        image = image.quantize(256)
    elif mode != "I":
        image = image.convert(mode)
    assert image.mode == mode
    decoded = decode_image(image, channels)
    assert decoded.mode == {1: "L", 3: "RGB"}[channels]
    if mode != "1":
        reference = np.asarray(gradient().convert("L"), int)
        assert np.abs(np.asarray(decoded.convert("L"), int) - reference).mean() < 8


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format_decodes(form):
    decoded = decode_image(encode(gradient(), form))
    assert np.abs(np.asarray(decoded, int) - np.asarray(gradient(), int)).mean() < 8


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 257 * 7, 257 * 200 + 128, 65535]], np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), "PNG"), 1)
    assert np.asarray(decoded).tolist() == [[0, 0, 7, 200, 255]]


def test_palette_with_transparency_decodes_without_a_warning():
    image = gradient().convert("P")
    image.info["transparency"] = bytes(range(256))
    assert decode_image(encode(image, "PNG")).mode == "RGB"


def test_exif_orientation_is_applied_only_on_request():
    assert decode_image(rotated()).size == (200, 150)
    assert decode_image(rotated(), exif_orientation=True).size == (150, 200)


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        decode_image(gradient().convert("F"))
