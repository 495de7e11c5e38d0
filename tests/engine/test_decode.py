"""Pictures of every kind that people have: decoded as their files say, or refused in one line that says why."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image

from engine.decode import decode_picture
from helpers import SHARED
from settings.script import SettingsError

RED, WHITE, GREEN, BLUE = (255, 0, 0), (255, 255, 255), (0, 255, 0), (0, 0, 255)


def file_of(image, format, **options):
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(content):
    return np.asarray(decode_picture(content, "it")).tolist()


def greys(content):
    """The values of a grey picture of one row; its three channels are the same."""
    (row,) = pixels(content)
    assert all(len(set(pixel)) == 1 for pixel in row)
    return [pixel[0] for pixel in row]


def error_of(source, name="row 3"):
    with pytest.raises(SettingsError) as caught:
        decode_picture(source, name)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{name}: the picture cannot be read: ")
    return line


def png_file(size, depth, colour_type, rows, chunk=b""):
    """A PNG by its specification, for what the library does not write."""

    def part(kind, content):
        checked = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checked)

    header = part(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))
    transparent = part(b"tRNS", chunk) if chunk else b""
    return b"\x89PNG\r\n\x1a\n" + header + transparent + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def tiff_file(width, bits, values, photometric=1, sample_format=1):
    """A grey TIFF of one row by its specification, little-endian and without compression."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(values)}
    tags[339] = sample_format
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + values


# ---- grey of more than 8 bits

DEEP = np.array([[0, 257, 128 * 257, 65535]], np.uint16)  # 257 = 65535 / 255


@pytest.mark.parametrize("format", ["PNG", "PPM", "TIFF"])
def test_grey_of_16_bits_is_scaled_by_its_whole_range_and_does_not_turn_white(format):
    assert greys(file_of(Image.fromarray(DEEP), format)) == [0, 1, 128, 255]


def test_grey_of_16_bits_reads_the_same_in_either_order_of_bytes():
    big = Image.frombytes("I;16B", (4, 1), DEEP.astype(">u2").tobytes())
    assert greys(file_of(big, "TIFF")) == [0, 1, 128, 255]


def test_a_pgm_says_itself_which_value_is_white():
    # 2048 / 4095 * 255 = 127.53
    assert greys(b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095)) == [0, 128, 255]
    assert greys(b"P2 3 1 1000\n0 501 1000\n") == [0, 128, 255]  # 501 / 1000 * 255 = 127.76


def test_a_tiff_of_12_bits_is_scaled_by_4095():
    # two values in three bytes: 0x000 0xFFF, 0x800 0x000; 2048 / 4095 * 255 = 127.53
    assert greys(tiff_file(4, 12, bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00]))) == [0, 255, 128, 0]


def test_a_tiff_whose_zero_is_white_is_turned_round():
    assert greys(tiff_file(3, 16, struct.pack("<3H", 0, 257, 65535), photometric=0)) == [255, 254, 0]
    assert greys(tiff_file(3, 8, bytes([0, 1, 255]), photometric=0)) == [255, 254, 0]


def test_colours_of_16_bits_keep_their_upper_half():
    rows = b"\0" + struct.pack(">6H", 65535, 0, 0, 0x80FF, 0x8000, 0x7FFF)
    assert pixels(png_file((2, 1), 16, 2, rows)) == [[[255, 0, 0], [128, 128, 127]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_tiff_that_does_not_say_what_is_white_is_refused_by_its_mode(mode):
    assert f"TIFF of mode {mode} does not say which value is white" in error_of(
        file_of(Image.new(mode, (4, 4), 7), "TIFF")
    )


def test_grey_with_a_sign_is_refused():
    assert "TIFF of mode I does not say" in error_of(tiff_file(2, 16, struct.pack("<2h", -5, 5), sample_format=2))


def test_a_floating_point_map_is_refused():
    assert "PPM of mode F does not say" in error_of(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5))


def test_lab_is_refused_by_name():
    assert "TIFF of mode LAB does not say" in error_of(file_of(Image.new("LAB", (4, 4)), "TIFF"))


@pytest.mark.skipif(not (SHARED / "data" / "orl_faces").is_dir(), reason="the ORL photographs are not there")
def test_a_photograph_saved_with_16_bits_is_the_same_picture():
    file = SHARED / "data" / "orl_faces" / "s1" / "1.pgm"
    with Image.open(file) as photograph:
        deep = Image.fromarray(np.asarray(photograph).astype(np.uint16) * 257)
    assert pixels(file) == pixels(file_of(deep, "PNG")) == pixels(file_of(deep, "TIFF"))


# ---- which side is up

# what a picture stored as 1 2 / 3 4 shows under each tag (EXIF 2.3, 4.6.4 A)
UPRIGHT = {
    1: [[1, 2], [3, 4]],
    2: [[2, 1], [4, 3]],
    3: [[4, 3], [2, 1]],
    4: [[3, 4], [1, 2]],
    5: [[1, 3], [2, 4]],
    6: [[3, 1], [4, 2]],
    7: [[4, 2], [3, 1]],
    8: [[2, 4], [1, 3]],
}


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}), ("JPEG", {})],
    ids=["png", "tiff", "tiff lzw", "webp", "jpeg"],
)
@pytest.mark.parametrize("tag", UPRIGHT)
def test_a_picture_is_turned_as_its_orientation_says(tag, format, options):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = tag
    stored = np.kron(np.array([[1, 2], [3, 4]], np.uint8) * 60, np.ones((16, 16), np.uint8))
    shown = np.array(pixels(file_of(Image.fromarray(stored).convert("RGB"), format, exif=tags, **options)))
    assert (shown[8::16, 8::16, 0] / 60).round().tolist() == UPRIGHT[tag]


def test_deep_grey_is_turned_too():
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    assert pixels(file_of(Image.fromarray(DEEP), "PNG", exif=tags)) == [[[grey] * 3] for grey in (0, 1, 128, 255)]


def test_torn_tags_that_no_longer_say_which_side_is_up_are_refused():
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "maker" * 20
    tags[ExifTags.Base.Orientation] = 6
    torn = tags.tobytes()[:20]  # ends within the first tag
    assert "nobody knows which side is up" in error_of(file_of(Image.new("RGB", (8, 8)), "JPEG", exif=torn))


# ---- transparency, palettes, colours


def two_pixels(mode, one, other):
    image = Image.new(mode, (2, 1), one)
    image.putpixel((1, 0), other)
    return image


# red that nothing hides, and red that is hidden: half of it is laid on white, 255 * (1 - 128 / 255) = 127
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_shows_white_and_not_the_colour_it_hides(format):
    lossless = {"lossless": True, "exact": True} if format == "WEBP" else {}
    hidden = file_of(two_pixels("RGBA", (*RED, 255), (*RED, 0)), format, **lossless)
    assert pixels(hidden) == [[[*RED], [*WHITE]]]
    half = file_of(two_pixels("RGBA", (*RED, 255), (*RED, 128)), format, **lossless)
    assert pixels(half) == [[[*RED], [255, 127, 127]]]


def test_grey_with_transparency_is_laid_on_white():
    assert greys(file_of(two_pixels("LA", (10, 255), (10, 0)), "PNG")) == [10, 255]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_palette_keeps_its_colours_and_its_transparent_one_shows_white(format):
    image = two_pixels("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    assert pixels(file_of(image, format)) == [[[*RED], [*BLUE]]]
    assert pixels(file_of(image, format, transparency=1)) == [[[*RED], [*WHITE]]]


def test_a_palette_whose_colours_are_transparent_by_degrees_is_laid_on_white():
    image = two_pixels("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    shown = pixels(file_of(image, "PNG", transparency=bytes([255, 128])))
    assert shown == [[[*RED], [127, 127, 255]]]


def test_one_transparent_colour_of_8_bits_shows_white():
    assert greys(file_of(two_pixels("L", 10, 20), "PNG", transparency=20)) == [10, 255]
    assert pixels(file_of(two_pixels("RGB", RED, BLUE), "PNG", transparency=BLUE)) == [[[*RED], [*WHITE]]]


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        (png_file((2, 1), 4, 0, b"\0\x5f", struct.pack(">H", 5)), "L;4"),
        (png_file((2, 1), 16, 0, b"\0" + struct.pack(">2H", 300, 0), struct.pack(">H", 300)), "I;16B"),
        (png_file((1, 1), 16, 2, b"\0" + struct.pack(">3H", 1, 2, 3), struct.pack(">3H", 1, 2, 3)), "RGB;16B"),
    ],
    ids=["4 bits", "16 bits", "16 bits of colour"],
)
def test_one_transparent_colour_of_another_depth_is_refused(content, stored):
    assert f"one colour of it is transparent, and its values are {stored}" in error_of(content)


def test_inks_become_the_colours_they_print():
    # no ink, magenta and yellow, black
    image = Image.new("CMYK", (48, 16))
    image.paste((0, 255, 255, 0), (16, 0, 32, 16))
    image.paste((0, 0, 0, 255), (32, 0, 48, 16))
    for content in (file_of(image, "JPEG", quality=100), file_of(image, "TIFF")):
        row = pixels(content)[8]
        assert [row[8], row[24], row[40]] == [[*WHITE], [*RED], [0, 0, 0]]


@pytest.mark.parametrize("format", ["PNG", "PPM", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(format):
    assert greys(file_of(two_pixels("1", 0, 1), format)) == [0, 255]


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF"])
def test_plain_colours_come_through_as_they_are(format):
    assert pixels(file_of(two_pixels("RGB", (1, 2, 3), (250, 0, 77)), format)) == [[[1, 2, 3], [250, 0, 77]]]


def test_an_opaque_picture_with_an_alpha_channel_keeps_every_colour():
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image = Image.fromarray(colours)
    image.putalpha(255)
    assert pixels(file_of(image, "PNG")) == colours.tolist()


# ---- what is no single picture


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_or_a_file_of_several_pages_is_refused(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    content = file_of(frames[0], format, save_all=True, append_images=frames[1:])
    assert "it holds 3 frames or pages; save the one that is meant" in error_of(content)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF"])
def test_a_file_that_could_be_an_animation_and_has_one_frame_is_read(format):
    shown = np.array(pixels(file_of(Image.new("RGB", (8, 8), RED), format)))
    assert abs(shown - RED).max() < 3


def test_a_photograph_that_carries_a_second_view_is_its_first():
    views = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    shown = np.array(pixels(file_of(views[0], "MPO", save_all=True, append_images=views[1:])))
    assert abs(shown - RED).max() < 3


@pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "SGI", "JPEG2000", "AVIF", "DDS"])
def test_a_format_that_is_not_on_the_list_is_refused_and_the_list_is_said(format):
    line = error_of(file_of(Image.new("RGB", (16, 16)), format))
    assert "BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP are read" in line


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><p>404", b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_what_is_no_picture_is_shown_by_how_it_begins(content):
    assert f"it begins with {content[:16]!r}" in error_of(content)


# ---- what cannot be read


@pytest.mark.parametrize("times", [1, 2])
def test_a_picture_over_the_librarys_limit_is_one_line(times, monkeypatch):
    """The library only warns up to twice its limit."""
    content = file_of(Image.new("RGB", (10 * times, 11)), "PNG")
    assert pixels(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "it has more than 100 pixels, the library's limit" in error_of(content)


FORMATS = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "ppm": ("PPM", {}),
    "webp": ("WEBP", {}),
    "webp lossless": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_torn_file_is_one_line_wherever_it_ends_and_never_another_picture(name, recwarn):
    format, options = FORMATS[name]
    colours = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    content = file_of(Image.fromarray(colours), format, **options)
    whole, refused = pixels(content), 0
    for end in range(0, len(content), len(content) // 40):
        try:
            assert pixels(content[:end]) == whole
        except SettingsError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 35
    assert len(recwarn) == 0  # a warning would be a line of its own


def test_a_changed_byte_is_one_line_or_a_picture_and_never_a_traceback():
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    source = np.random.default_rng(1)
    read = 0
    for format, options in FORMATS.values():
        content = bytearray(file_of(Image.fromarray(colours), format, **options))
        for place in source.integers(0, len(content), 60):
            changed = bytes([*content[:place], content[place] ^ 0xFF, *content[place + 1 :]])
            try:
                assert decode_picture(changed, "it").mode == "RGB"
                read += 1
            except SettingsError as error:
                assert "\n" not in str(error)
    assert 0 < read < 600


def test_a_file_that_is_not_there_a_broken_link_and_a_folder_are_told_apart(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert f"'{tmp_path}/none.png' is not there" in error_of(tmp_path / "none.png")
    assert f"'{tmp_path}/link.png' is a link to nothing" in error_of(tmp_path / "link.png")
    assert "Is a directory" in error_of(tmp_path)


def test_a_file_is_read_by_what_it_holds_and_not_by_its_name(tmp_path):
    file = tmp_path / "face.jpg"
    file.write_bytes(file_of(Image.new("RGB", (2, 2), RED), "PNG"))
    assert pixels(file) == [[[*RED]] * 2] * 2
    assert pixels(str(file)) == pixels(file)
