"""One decode path for every image: allowed formats only, damaged metadata does not matter, one line for the rest."""

import io
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from anchored.data.image_sources import ImageIndex, index_files
from anchored.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


def index_of(path: Path, published: bool) -> ImageIndex:
    """An index of one file, as a user's or as the catalog's."""
    return replace(index_files([path]), dataset="dtd" if published else "")


def encode(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


def refusal(path: Path, published: bool) -> str:
    with pytest.raises(UserError) as raised:
        index_of(path, published).decode(0)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("published", [False, True])
def test_an_eps_named_jpg_never_reaches_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(subprocess, "check_call", started)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    (tmp_path / "a.jpg").write_bytes(encode("EPS"))
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "EPS"  # by Pillow's own choice of a decoder
    assert "a.jpg is not an image of an allowed format" in refusal(tmp_path / "a.jpg", published)


def exif_with_negative_rational(orientation: int) -> bytes:
    """An EXIF block whose XResolution, an unsigned rational, is stored as a signed one, -72/1."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, orientation) + struct.pack("<HHII", 0x011A, 10, 1, 38)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4) + struct.pack("<ii", -72, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_negative_rationals_in_exif_do_not_stop_the_pixels(tmp_path: Path, kind: str) -> None:
    plain, tagged = tmp_path / "plain.jpg", tmp_path / "tagged.jpg"
    plain.write_bytes(encode(kind))
    tagged.write_bytes(encode(kind, exif=exif_with_negative_rational(6)))
    upright, turned = (np.asarray(index_of(path, published=False).decode(0)) for path in (plain, tagged))
    assert np.array_equal(turned, np.rot90(upright, -1))
    assert np.array_equal(np.asarray(index_of(tagged, published=True).decode(0)), upright)  # as the sets were published


def test_a_tiff_with_negative_rationals_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for orientation, expected in ((1, PIXELS), (6, np.rot90(PIXELS, -1)), (3, np.rot90(PIXELS, 2))):
        entries = [
            (256, 4, 1, 16), (257, 4, 1, 24), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 200),
            (274, 3, 1, orientation), (277, 3, 1, 3), (278, 4, 1, 24), (279, 4, 1, PIXELS.nbytes), (282, 10, 1, 180),
        ]  # fmt: skip
        head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
        head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
        head = head.ljust(180, b"\0") + struct.pack("<ii", -72, 1)
        path.write_bytes(head.ljust(200, b"\0") + PIXELS.tobytes())
        assert np.array_equal(np.asarray(index_of(path, published=False).decode(0)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(encode("PNG", exif=exif))
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert np.array_equal(np.asarray(index_of(tmp_path / "a.png", published=False).decode(0)), np.asarray(expected))


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("kind", ["AVIF", "PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_a_damaged_image_is_one_line_whatever_its_decoder_raises(tmp_path: Path, kind: str, published: bool) -> None:
    try:
        good = encode(kind)
    except (KeyError, OSError):
        pytest.skip(f"Pillow here does not write {kind}")
    path = tmp_path / "a.png"
    generator = np.random.default_rng(1)
    cases = [good[: len(good) // 2], good[:40]]
    for _ in range(30):
        spoilt = bytearray(good)
        for place in generator.integers(8, len(good), 6).tolist():
            spoilt[place] = int(generator.integers(256))
        cases.append(bytes(spoilt))
    refused = 0
    for content in cases:
        path.write_bytes(content)
        problem = ""
        try:
            index_of(path, published).decode(0)
        except UserError as error:
            problem = str(error)
            refused += 1
        assert problem.startswith(str(path) if problem else "")
        assert "\n" not in problem
    assert refused >= 2


@pytest.mark.parametrize(
    "error", [RuntimeError("no\nmemory"), struct.error("short"), ZeroDivisionError(), MemoryError()]
)
def test_any_exception_of_a_decoder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "a.png").write_bytes(encode("PNG"))

    def fails(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    assert "a.png is not a whole image (" in refusal(tmp_path / "a.png", published=False)


# --- Levels


def tiff(levels: list[int], bits: int, kind: int = 1, photometric: int = 1) -> bytes:
    """A grey TIFF of one row: SampleFormat ``kind`` (1: unsigned, 2: signed); 12 bits are packed."""
    if bits == 12:
        packed = int("".join(f"{level:012b}" for level in levels), 2).to_bytes(len(levels) * 3 // 2, "big")
    else:
        packed = np.array(levels).astype(f"<{'u' if kind == 1 else ''}i{bits // 8}".replace("ui", "u")).tobytes()
    entries = [
        (256, 4, 1, len(levels)), (257, 4, 1, 1), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, len(packed)), (339, 3, 1, kind),
    ]  # fmt: skip
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return head.ljust(200, b"\0") + packed


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff([0, 255, 128, 7], 8), [0, 255, 128, 7]),
        (tiff([0, 65535, 32896, 257], 16), [0, 255, 128, 1]),
        (tiff([0, 65535, 32896, 257], 16, photometric=0), [255, 0, 127, 254]),
        (tiff([0, 4095, 2056, 16], 12), [0, 255, 128, 1]),
        (tiff([0, 0, 0, 0], 16), [0, 0, 0, 0]),
    ],
)
def test_levels_are_scaled_by_the_formats_range(tmp_path: Path, content: bytes, expected: list[int]) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(index_of(tmp_path / "a.tif", published=False).decode(0)).tolist() == [expected]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiff([0, 255, 128, 7], 32), "signed or 32-bit numbers"),
        (tiff([0, 255, 128, 7], 32, kind=2), "signed or 32-bit numbers"),
        (tiff([0, 255, 128, 7], 16, kind=2), "signed or 32-bit numbers"),
        (tiff([0, 4095, 128, 7], 16), "less than a sixteenth of its 16 bits"),
    ],
)
def test_levels_without_a_stated_range_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    assert said in refusal(tmp_path / "a.tif", published=False)


def test_twelve_bits_in_a_colour_png_of_sixteen_are_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for top, refused in ((4095, True), (65535, False)):
        rows = b"".join(b"\0" + struct.pack(">6H", *(level,) * 6) for level in (top, 0))
        head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
        content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        if refused:
            assert "less than a sixteenth of its 16 bits" in refusal(tmp_path / "a.png", published=False)
        else:
            pixels = np.asarray(index_of(tmp_path / "a.png", published=False).decode(0))
            assert pixels[:, 0, 0].tolist() == [255, 0]
