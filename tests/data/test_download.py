"""Getting data sets, from a server on this machine that misbehaves in every way that servers do."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import shutil
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fixtures.catalog_copies import pack

from anchored.data.catalog import registry as catalog
from anchored.data.catalog.registry import CATALOG
from anchored.data.catalog.row import DataSet, File
from anchored.data.readers import download, unpack, verify, web
from anchored.data.readers.files import is_here
from anchored.data.readers.layouts import read_index
from anchored.errors import UserError

BODY = bytes(range(256)) * 4000  # about a megabyte: several blocks


@dataclass
class Server:
    """What is served: ``files`` by path; ``requests``: the paths asked for, with their Range header."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def asked(self, path: str) -> list[str | None]:
        return [given for name, given in self.requests if name == path]


def handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """The first folder of the path says how the server behaves: /drop/x, /stall/x, /good/x ..."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _, way, name = self.path.split("/", 2)
            given = self.headers.get("Range")
            server.requests.append((f"{way}/{name}", given))
            self.close_connection = True
            getattr(self, f"way_{way}")(server.files.get(name, b""), int(given[6:-1]) if given else 0)

        def begin(self, status: int, length: int, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def send(self, body: bytes, start: int, give: int | None = None) -> None:
            """Send ``give`` bytes of what is left from ``start``, though all of it is announced."""
            self.begin(206 if start else 200, len(body) - start, ETag=f'"{len(body)}"')
            self.wfile.write(body[start:][:give])

        def way_good(self, body: bytes, start: int) -> None:
            self.send(body, start)

        def way_drop(self, body: bytes, start: int) -> None:
            self.send(body, start, 300_000)

        def way_whole(self, body: bytes, start: int) -> None:
            self.send(body, 0, 300_000 if len(server.asked(f"whole/{self.path[7:]}")) == 1 else None)

        def way_stall(self, body: bytes, start: int) -> None:
            self.send(body, start, 0 if start else 100_000)
            server.released.wait(20)

        def way_page(self, body: bytes, start: int) -> None:
            self.begin(200, 40, **{"Content-Type": "text/html"})
            self.wfile.write(b"<!doctype html><title>quota exceeded</title>"[:40])

        def way_moved(self, body: bytes, start: int) -> None:
            self.begin(302, 0, Location=f"{server.address}/good/{self.path[7:]}")

        def way_file(self, body: bytes, start: int) -> None:
            self.begin(302, 0, Location="ftp://127.0.0.1/x.tar")

        def way_other(self, body: bytes, start: int) -> None:
            self.send(body[::-1], start)

        def way_empty(self, body: bytes, start: int) -> None:
            self.begin(200, 0)

        def way_cut(self, body: bytes, start: int) -> None:
            """A part of the file, and no word on its length."""
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])

        def way_endless(self, body: bytes, start: int) -> None:
            """A body without an end, and no word on its length."""
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not server.released.is_set():
                    self.wfile.write(bytes(1 << 16))

        def way_unnamed(self, body: bytes, start: int) -> None:
            """No version; each answer breaks off, and comes from the next version of the file."""
            versions = len(server.asked(f"unnamed/{self.path[9:]}"))
            self.begin(206 if start else 200, len(body) - start)
            self.wfile.write(bytes([versions]) * min(300_000, len(body) - start))

        def way_changed(self, body: bytes, start: int) -> None:
            """A range of a newer version than the start was of, although If-Range was asked for."""
            self.begin(206 if start else 200, len(body) - start, ETag=f'"{1 if start else 2}"')
            self.wfile.write((bytes(len(body)) if start else body)[start:][: None if start else 300_000])

        def way_range(self, body: bytes, start: int) -> None:
            """As the standard says: a range beyond the file is status 416 with the file's length."""
            if start < len(body):
                return self.send(body, start)
            return self.begin(416, 0, **{"Content-Range": f"bytes */{len(body)}"})

        def way_nowhere(self, body: bytes, start: int) -> None:
            self.begin(302, 0, Location="http://[::1/x.tar")

        def way_long(self, body: bytes, start: int) -> None:
            """A length that is no number."""
            self.send_response(200)
            self.send_header("Content-Length", "-1, 9" + "9" * 400)
            self.end_headers()
            self.wfile.write(body)

        def way_noise(self, body: bytes, start: int) -> None:
            self.wfile.write(b"\x00\x1b[31m no status line\r\n\r\n")

        def way_none(self, body: bytes, start: int) -> None:
            self.begin(404, 0)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(served)) as running:
        running.daemon_threads = True
        served.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield served
        served.released.set()
        running.shutdown()
        thread.join()


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"


def serve(server: Server, monkeypatch: pytest.MonkeyPatch, ways: str, data: bytes = BODY, **changes: object) -> DataSet:
    """A row "served" of one part, ``x.tar``, to be had in each of ``ways``, from first to last."""
    server.files["x.tar"] = data
    part = File(
        name="x.tar",
        bytes=len(data),
        hash=md5(data),
        urls=tuple(f"{server.address}/{way}/x.tar" for way in ways.split()),
        holds=("inside",),
    )
    part = replace(part, **changes)  # type: ignore[arg-type]
    row = replace(
        CATALOG["lsun-r"],
        name="served",
        folder="served",
        parts=(part,),
        needs=part.makes or part.holds,
        images="inside",
    )
    monkeypatch.setitem(CATALOG, "served", row)
    return row


def fetch(root: Path, **options: object) -> Path:
    (path,) = download.fetch_dataset("served", root, progress=False, timeout=0.3, **options)  # type: ignore[arg-type]
    return path


def refused(root: Path, *texts: str, **options: object) -> None:
    with pytest.raises(UserError) as error:
        fetch(root, **options)
    message = str(error.value)
    assert "\n" not in message
    for text in texts:
        assert text in message
    assert not (root / "served/x.tar").exists()


def test_a_file_comes_once(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    row = serve(server, monkeypatch, "good")
    path = fetch(tmp_path)
    assert path == tmp_path / "served/x.tar"
    assert path.read_bytes() == BODY
    assert fetch(tmp_path) == path
    assert server.requests == [("good/x.tar", None)]
    path.write_bytes(b"damaged")  # another size and time: it is hashed again, and replaced
    assert fetch(tmp_path).read_bytes() == BODY
    assert is_here(row, tmp_path)
    assert sorted(each.name for each in path.parent.iterdir()) == [".anchored.json", ".lock", "x.tar"]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_on_a_terminal_only(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
) -> None:
    serve(server, monkeypatch, "good")
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    download.fetch_dataset("served", tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("x.tar" in printed.err) == terminal


def test_what_broke_off_is_gone_on_with(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, monkeypatch, "drop")
    assert fetch(tmp_path).read_bytes() == BODY
    assert server.asked("drop/x.tar") == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_server_without_ranges_starts_again(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, monkeypatch, "whole")
    assert fetch(tmp_path).read_bytes() == BODY
    assert server.asked("whole/x.tar") == [None, "bytes=300000-"]


def test_a_part_of_an_earlier_process_is_gone_on_with(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, monkeypatch, "good")
    (tmp_path / "served").mkdir()
    part = tmp_path / "served/.x.tar.part"
    part.write_bytes(BODY[:500_000])
    assert fetch(tmp_path).read_bytes() == BODY
    (tmp_path / "served/x.tar").unlink()
    part.write_bytes(bytes(500_000))  # of another file: found out by the hash, and begun again
    assert fetch(tmp_path).read_bytes() == BODY
    (tmp_path / "served/x.tar").unlink()
    part.write_bytes(bytes(len(BODY) + 5))  # longer than the file
    assert fetch(tmp_path).read_bytes() == BODY


def test_a_silent_server_is_left_for_the_next(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TRIES", 1)
    serve(server, monkeypatch, "stall good")
    began = time.monotonic()
    assert fetch(tmp_path).read_bytes() == BODY
    assert time.monotonic() - began < 10
    assert server.asked("good/x.tar")[0] is not None  # what the first gave is not asked for again


@pytest.mark.parametrize(
    "ways", ["none good", "page good", "other good", "moved", "file good", "empty good", "cut good", "noise good"]
)
def test_places_are_tried_in_turn(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, ways: str) -> None:
    serve(server, monkeypatch, ways)
    assert fetch(tmp_path).read_bytes() == BODY


def test_each_failure_is_named_in_one_line(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TRIES", 1)
    row = serve(server, monkeypatch, "none page other file stall empty noise")
    elsewhere = (*row.parts[0].urls, "http://127.0.0.1:9/x.tar", "ftp://127.0.0.1/x.tar")
    monkeypatch.setitem(CATALOG, "served", replace(row, parts=(replace(row.parts[0], urls=elsewhere),)))
    refused(
        tmp_path,
        "/none/x.tar: HTTP 404",
        "/page/x.tar: the server sent a web page, not the file",
        "/other/x.tar: its hash is not md5:",
        "/file/x.tar: it redirects to ftp://127.0.0.1/x.tar",
        "/stall/x.tar: silent for 0.3 s",
        "/empty/x.tar: the server sent an empty file",
        "/noise/x.tar: its answer is not HTTP",
        "127.0.0.1:9/x.tar: no connection",
        "ftp://127.0.0.1/x.tar: not an http address",
        f"bring {server.address}/none/x.tar by hand (into {tmp_path / 'served'})",
    )


def test_offline_asks_nobody(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, monkeypatch, "good")
    refused(tmp_path, "the network is off (offline)", f"bring {server.address}/good/x.tar by hand", offline=True)
    monkeypatch.setenv("ANCHORED_OFFLINE", "1")
    refused(tmp_path, "the network is off (offline)")
    assert server.requests == []
    (tmp_path / "served/x.tar").write_bytes(BODY)
    assert fetch(tmp_path).read_bytes() == BODY
    assert server.requests == []


def test_a_file_without_a_published_hash_is_bound_to_its_first_download(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = serve(server, monkeypatch, "good", hash=None, bytes=None)
    path = fetch(tmp_path)
    assert verify.check_archives(row, tmp_path) == [
        f"x.tar cannot be verified (no hash of it is published), unchanged since it was first fetched on "
        f"{time.strftime('%Y-%m-%d')}"
    ]
    path.write_bytes(BODY[:-1] + b"!")
    with pytest.raises(UserError, match="is not the published file"):
        verify.check_archives(row, tmp_path)
    server.files["x.tar"] = BODY[:-1] + b"?"
    path.unlink()
    refused(tmp_path, "its hash is not sha256:")
    assert verify.check_archives(serve(server, monkeypatch, "good"), tmp_path / "nothing") == []


def test_a_zip_without_a_published_hash_must_be_whole(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = zipped(lambda archive: archive.writestr("inside/a.jpg", BODY))
    row = serve(server, monkeypatch, "cut", data, name="x.zip", hash=None, bytes=None)
    server.files["x.tar"] = data
    with pytest.raises(UserError, match=r"x\.zip is not a whole zip file: move it elsewhere and fetch it again"):
        fetch(tmp_path)
    with pytest.raises(UserError, match=r"x\.zip is not a whole zip file \(File is not a zip file\)"):
        read_index(row, "test", tmp_path)
    (tmp_path / "served/x.zip").unlink()
    serve(server, monkeypatch, "good", data, name="x.zip", hash=None, bytes=None)  # not bound to what was cut
    assert fetch(tmp_path).read_bytes() == data


def test_no_room_on_the_disk_is_said_first(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, monkeypatch, "good", bytes=1 << 60)
    refused(tmp_path, "x.tar needs 1152921504.6 GB in", "set ANCHORED_DATA to another disk")
    assert server.requests == []


def test_two_at_a_time_fetch_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(server, monkeypatch, "drop")
    both = [threading.Thread(target=download.fetch_dataset, args=("served", tmp_path)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(30)
    assert (tmp_path / "served/x.tar").read_bytes() == BODY
    assert server.asked("drop/x.tar") == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert "served: another process is fetching it; waiting" in capsys.readouterr().err


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_body_without_an_end_is_given_up(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    serve(server, monkeypatch, "endless", bytes=size)
    if size is None:
        free = iter([shutil.disk_usage(tmp_path)] * 9)
        full = shutil.disk_usage(tmp_path)._replace(free=web.RESERVE)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: next(free, full))
    refused(tmp_path, "goes on beyond its 1,024,000 bytes" if size else "it would fill the disk of ")
    assert not list((tmp_path / "served").glob(".x.tar.part*"))


@pytest.mark.parametrize("way", ["unnamed", "changed"])
def test_two_versions_are_not_spliced(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    serve(server, monkeypatch, way, hash=None, bytes=None)
    refused(tmp_path, "the connection broke off again and again")
    assert len(server.requests) >= web.TRIES
    serve(server, monkeypatch, "good", hash=None, bytes=None)
    assert fetch(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("known", [{}, {"bytes": None}, {"hash": None, "bytes": None}])
def test_a_complete_part_is_not_downloaded_again(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, known: dict[str, None]
) -> None:
    row = serve(server, monkeypatch, "range", **known)  # type: ignore[arg-type]
    (tmp_path / "served").mkdir()
    (tmp_path / "served/.x.tar.part").write_bytes(BODY)
    note = {"url": row.parts[0].urls[0], "etag": f'"{len(BODY)}"'}
    (tmp_path / "served/.x.tar.part.json").write_text(json.dumps(note))
    assert fetch(tmp_path).read_bytes() == BODY
    assert server.asked("range/x.tar") == ([f"bytes={len(BODY)}-"] if known else [])


@pytest.mark.parametrize("ways", ["nowhere good", "long"])
def test_malformed_headers_stop_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, ways: str
) -> None:
    serve(server, monkeypatch, ways)
    assert fetch(tmp_path).read_bytes() == BODY


# --- archives


def packed(files: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o4777
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return stream.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = {"./top/a.txt": b"a", "top/b/c.txt": b"c" * 5000, "__MACOSX/x": b"left out", "README": b"left out"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_is_unpacked_whole(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("top/", b"")
            for name, data in FILES.items():
                archive.writestr(name.removeprefix("./"), data)
        data = stream.getvalue()
    else:
        data = packed(FILES, mode="w:gz" if kind.endswith("gz") else "w")
    row = serve(server, monkeypatch, "good", data, makes=("top",), holds=())
    top = fetch(tmp_path)
    assert tree(top) == {"a.txt": b"a", "b/c.txt": b"c" * 5000}
    assert all(not path.stat().st_mode & (stat.S_ISUID | 0o022) for path in top.rglob("*"))
    assert fetch(tmp_path) == top
    assert len(server.requests) == 1
    assert verify.check_archives(row, tmp_path) == ["x.tar is the published file"]
    (top / "a.txt").unlink()
    with pytest.raises(UserError, match=r"top has 1 files, not 2 as x\.tar: move it elsewhere"):
        verify.check_archives(row, tmp_path)
    (tmp_path / "served/x.tar").unlink()  # may be deleted once it is unpacked
    assert fetch(tmp_path) == top
    assert len(server.requests) == 1


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(write: Callable[[zipfile.ZipFile], object]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/a.txt", b"a")
        write(archive)
    return stream.getvalue()


def zip_link() -> bytes:
    info = zipfile.ZipInfo("top/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped(lambda archive: archive.writestr(info, "/etc/passwd"))


UNSAFE = {
    "a parent": packed({"top/a": b"a"}, member("top/../../evil")),
    "a parent that is left out": packed({"top/a": b"a"}, member("../evil")),
    "an absolute path": packed({"top/a": b"a"}, member("/tmp/evil")),
    "a drive": packed({"top/a": b"a"}, member("C:evil")),
    "a backslash": packed({"top/a": b"a"}, member("top\\..\\evil")),
    "a link": packed({"top/a": b"a"}, member("top/link", tarfile.SYMTYPE, "/etc/passwd")),
    "a link inside": packed({"top/a": b"a"}, member("top/link", tarfile.SYMTYPE, "a")),
    "a hard link": packed({"top/a": b"a"}, member("top/link", tarfile.LNKTYPE, "../../../etc/passwd")),
    "a device": packed({"top/a": b"a"}, member("top/device", tarfile.CHRTYPE)),
    "a pipe": packed({"top/a": b"a"}, member("top/pipe", tarfile.FIFOTYPE)),
    "a parent in a zip": zipped(lambda archive: archive.writestr("top/../../evil", b"e")),
    "a link in a zip": zip_link(),
}


@pytest.mark.parametrize("what", UNSAFE)
def test_unsafe_archives_are_refused_whole(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    serve(server, monkeypatch, "good", UNSAFE[what], makes=("top",), holds=())
    with pytest.raises(UserError, match=r"(outside its folder|a link or device).*it was not unpacked") as error:
        fetch(tmp_path)
    assert "\n" not in str(error.value)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir())
    assert left == ["served/.lock", "served/x.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_a_bomb_is_bounded(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "GROUND", 1000)
    for data in (
        packed({"top/a": bytes(2_000_000)}),
        zipped(lambda archive: archive.writestr("top/b", bytes(2_000_000))),
    ):
        serve(server, monkeypatch, "good", data, makes=("top",), holds=())
        with pytest.raises(UserError, match="grows to more than it can hold"):
            fetch(tmp_path)
        assert not (tmp_path / "served/top").exists()
    monkeypatch.setattr(unpack, "MOST", 1)
    serve(server, monkeypatch, "good", packed({"top/a": b"", "top/b": b""}), makes=("top",), holds=())
    with pytest.raises(UserError, match="grows to more than it can hold"):
        fetch(tmp_path)


def test_damaged_archives_leave_what_was_there(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    good = packed(FILES)
    serve(server, monkeypatch, "good", good, makes=("top",), holds=())
    top = fetch(tmp_path)
    plain = gzip.decompress(good)
    lying = packed({"top/a": b"a", "top/b": bytes(9999)}, mode="w")[: 3 * 512] + bytes(8704)  # two headers, one content
    for data, text in (
        (good[: len(good) // 2], r"x\.tar is (damaged|cut short)"),
        (gzip.compress(plain[:700]), r"x\.tar is (damaged|cut short)"),
        (lying, r"x\.tar is (damaged|cut short)"),
        (b"neither", r"x\.tar is damaged"),
        (packed({"other/a": b"a"}), r"x\.tar does not hold top"),
    ):
        (tmp_path / "served/.anchored.json").unlink(missing_ok=True)
        (tmp_path / "served/x.tar").unlink(missing_ok=True)
        (tmp_path / "served/x.tar").write_bytes(data)
        serve(server, monkeypatch, "good", data, makes=("top",), holds=())
        with pytest.raises(UserError, match=text) as error:
            fetch(tmp_path)
        assert "\n" not in str(error.value)
        assert tree(top) == {"a.txt": b"a", "b/c.txt": b"c" * 5000}


def test_a_web_page_kept_as_an_archive_is_recognised(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = serve(server, monkeypatch, "good", hash=None, bytes=None)
    (tmp_path / "served").mkdir()
    (tmp_path / "served/x.tar").write_bytes(b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>")
    with pytest.raises(UserError, match=r"x\.tar is a web page, not x\.tar: move it elsewhere and fetch it again"):
        verify.check_archives(row, tmp_path)
    assert fetch(tmp_path).read_bytes() == BODY


def test_imagenet_is_unpacked_from_the_archives_that_a_person_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"ILSVRC2012_img_train\.tar of ImageNet: it cannot be .*log in at image-net\.org"
    ):
        download.fetch_dataset("imagenet", tmp_path, progress=False)
    whole = catalog.get_dataset("imagenet")
    inner = {
        wnid: packed({f"{wnid}_{number}.JPEG": f"{wnid} {number}".encode() for number in range(2)}, mode="w")
        for wnid in whole.folders[:2]
    }
    archives = (
        packed({f"{wnid}.tar": data for wnid, data in inner.items()}, mode="w"),
        packed({f"ILSVRC2012_val_{number:08d}.JPEG": b"image" for number in (1, 2)}, mode="w"),
        packed({"ILSVRC2012_devkit_t12/data/meta.mat": b"matlab"}),
    )
    parts = []
    for part, data in zip(whole.parts, archives, strict=True):
        (tmp_path / "imagenet" / part.name).write_bytes(data)
        parts.append(replace(part, hash=md5(data), bytes=len(data)))
    monkeypatch.setitem(CATALOG, "imagenet", replace(whole, parts=tuple(parts)))
    made = download.fetch_dataset("imagenet", tmp_path, progress=False)
    assert made == tuple(tmp_path / "imagenet" / name for name in ("train", "val", "ILSVRC2012_devkit_t12"))
    assert sorted(tree(tmp_path / "imagenet/train")) == [
        f"{wnid}/{wnid}_{number}.JPEG" for wnid in whole.folders[:2] for number in range(2)
    ]
    assert sorted(tree(tmp_path / "imagenet/val")) == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2)]
    monkeypatch.setitem(CATALOG, "imagenet", whole)
    (tmp_path / "imagenet/.anchored.json").unlink()
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar is cut short"):
        download.fetch_dataset("imagenet", tmp_path, progress=False)


def test_no_file_of_a_person_goes_when_an_archive_is_unpacked_beside_it(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation images sorted into folders of their classes, say; what a kill left of unpacking is replaced."""
    top = tmp_path / "served/top"
    (top / "class").mkdir(parents=True)
    (tmp_path / "served/x.tar").write_bytes(packed(FILES))
    serve(server, monkeypatch, "good", packed(FILES), makes=("top",), holds=())
    for name, content in (("class/c.txt", b"c" * 5000), ("a.txt", b"mine"), ("b", b"")):
        (top / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is not as in .*x\.tar, which would replace .*: move one of them"):
            fetch(tmp_path)
        assert tree(top) == {name: content}
        (top / name).unlink()
    (top / "a.txt").write_bytes(b"a")
    assert tree(fetch(tmp_path)) == {"a.txt": b"a", "b/c.txt": b"c" * 5000}
    (top / "labels.csv").write_bytes(b"mine")  # added to what we unpacked
    renamed = packed({"more/d.txt": b"d", "top/a.txt": b"longer", "top/b/c.txt": b""})
    (tmp_path / "served/x.tar").write_bytes(renamed)
    serve(server, monkeypatch, "good", renamed, makes=("top", "more"), holds=())
    with pytest.raises(UserError, match=r"labels\.csv is not as in"):
        fetch(tmp_path)
    assert (top / "labels.csv").read_bytes() == b"mine"
    (top / "labels.csv").unlink()
    assert tree(fetch(tmp_path)) == {"a.txt": b"longer", "b/c.txt": b""}


def test_folders_that_a_person_unpacked_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("train", "val", "ILSVRC2012_devkit_t12"):
        (tmp_path / "imagenet" / name).mkdir(parents=True)
    assert download.fetch_dataset("imagenet", tmp_path, progress=False)[0] == tmp_path / "imagenet/train"
    (tmp_path / "cifar10-c/CIFAR-10-C").mkdir(parents=True)
    assert download.fetch_dataset("cifar10-c", tmp_path, offline=True) == (tmp_path / "cifar10-c/CIFAR-10-C",)


def test_sets_inside_the_package_need_no_fetching() -> None:
    assert download.fetch_dataset("digits") == ()
    assert download.fetch_dataset("blobs") == ()


def test_what_nobody_offers_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch CIFAR-10-C̄: nobody offers it .*cifar10-c-bar"):
        download.fetch_dataset("cifar10-c-bar", tmp_path)
    pack(tmp_path / "cifar10-c-bar/CIFAR-10-C-Bar/labels.npy", {})
    assert download.fetch_dataset("cifar10-c-bar", tmp_path) == ()
