"""Bundles: the same folder gives the same bytes, and no archive leads out of the bundle."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faas.artifacts.bundle import check_bundle, pack_bundle, read_bundle
from faas.errors import ArtifactMissingError, ArtifactTamperedError, ManifestError
from faas.wasi.files import BundleTree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "a" / "empty").mkdir(parents=True)
    (folder / "a" / "deep.txt").write_bytes(b"deep")
    (folder / "index.html").write_bytes(b"<p>hi</p>")
    (folder / "nothing").write_bytes(b"")
    (folder / "ünï.txt").write_bytes("é".encode())
    return folder


def stored(tmp_path: Path, archive: bytes) -> Path:
    path = tmp_path / "bundle.tar"
    path.write_bytes(archive)
    return path


def tar_of(*entries: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def test_a_bundle_reads_back_what_was_packed(folder: Path, tmp_path: Path) -> None:
    bundle = read_bundle(stored(tmp_path, pack_bundle(folder)))

    assert {name: bytes(contents) for name, contents in bundle.items()} == {
        "a/deep.txt": b"deep",
        "index.html": b"<p>hi</p>",
        "nothing": b"",
        "ünï.txt": "é".encode(),
    }
    assert bundle.folders == {"a", "a/empty"}


def test_contents_are_read_only_views(folder: Path, tmp_path: Path) -> None:
    view = read_bundle(stored(tmp_path, pack_bundle(folder)))["index.html"]

    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 0


def test_a_view_outlives_its_bundle_and_its_file(folder: Path, tmp_path: Path) -> None:
    path = stored(tmp_path, pack_bundle(folder))
    bundle = read_bundle(path)
    view = bundle["index.html"]
    bundle.close()
    path.unlink()

    assert bytes(view) == b"<p>hi</p>"
    assert not bundle


def test_packing_is_deterministic(folder: Path, tmp_path: Path) -> None:
    first = pack_bundle(folder)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755)
    renamed = folder.rename(tmp_path / "elsewhere")

    assert pack_bundle(renamed) == first


def test_a_symlink_is_refused_by_name(folder: Path) -> None:
    (folder / "a" / "passwd").symlink_to("/etc/passwd")

    with pytest.raises(ManifestError, match="a/passwd is a symbolic link"):
        pack_bundle(folder)


def test_a_symlink_to_a_folder_is_refused_and_not_followed(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)

    with pytest.raises(ManifestError, match="loop is a symbolic link"):
        pack_bundle(folder)


def test_a_pipe_is_refused_without_being_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")

    with pytest.raises(ManifestError, match="pipe is not a regular file"):
        pack_bundle(folder)


def test_a_folder_over_the_cap_is_refused(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(2_000_000))

    with pytest.raises(ManifestError, match="over 1 MiB at large"):
        pack_bundle(folder, max_bytes=1024 * 1024)


def test_a_missing_folder_is_a_manifest_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a folder"):
        pack_bundle(tmp_path / "nowhere")


def test_an_empty_folder_makes_an_empty_bundle(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()

    assert len(read_bundle(stored(tmp_path, pack_bundle(tmp_path / "files")))) == 0


@pytest.mark.parametrize(
    "hostile",
    [
        entry("/etc/passwd"),
        entry("../up"),
        entry("a/../../up"),
        entry("a\\b"),
        entry("link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("hard", tarfile.LNKTYPE, "/etc/passwd"),
        entry("dev", tarfile.CHRTYPE),
        entry("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda made: made.name,
)
def test_an_archive_that_leads_out_is_refused(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    archive = tar_of(entry("fine"), hostile)

    with pytest.raises(ArtifactTamperedError):
        read_bundle(stored(tmp_path, archive))
    with pytest.raises(ManifestError):
        check_bundle(archive)


def test_the_same_path_twice_is_refused(tmp_path: Path) -> None:
    archive = tar_of(entry("twin"), entry("twin"))

    with pytest.raises(ArtifactTamperedError):
        read_bundle(stored(tmp_path, archive))
    with pytest.raises(ManifestError):
        check_bundle(archive)


@pytest.mark.parametrize("archive", [b"", b"not a tar" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, archive: bytes) -> None:
    with pytest.raises(ArtifactTamperedError):
        read_bundle(stored(tmp_path, archive))
    with pytest.raises(ManifestError):
        check_bundle(archive)


def test_a_missing_bundle_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        read_bundle(tmp_path / "nowhere.tar")


def test_what_was_packed_passes_the_upload_check(folder: Path) -> None:
    check_bundle(pack_bundle(folder))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_archives_raise_only_our_errors(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    archive = bytearray(pack_bundle(folder))
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(archive) - 1), st.integers(0, 255)), min_size=1, max_size=6)
    ):
        archive[at] = byte
    cut = bytes(archive[: data.draw(st.integers(0, len(archive)))])
    try:
        check_bundle(cut)
    except ManifestError:
        with pytest.raises(ArtifactTamperedError):
            read_bundle(stored(tmp_path, cut))
    else:
        for contents in read_bundle(stored(tmp_path, cut)).values():
            bytes(contents)


def pax_entry(raw_name: bytes) -> bytes:
    """Return an archive of one empty file whose name is those very bytes."""
    made = entry("x" * len(raw_name)).tobuf(tarfile.USTAR_FORMAT)
    header = raw_name.ljust(100, b"\0") + made[100:148] + b" " * 8 + made[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:] + bytes(1024)


PATHS = [
    *(("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("a", "a/b/c"), ("a-", "a", "a/b")),
    *(("x" * 255,), ("x" * 256,), ("ä" * 127,), ("ä" * 128,), ("x" * 256 + "/a",), ("d/" + "x" * 256,)),
    *(("a", "b", "c/d"), ("tmp/a",), ("tmp", "tmp/a"), ("..a", "a..", "...")),
]


@pytest.mark.parametrize("paths", PATHS, ids=lambda paths: "+".join(path[:12] for path in paths))
def test_an_upload_is_refused_exactly_when_no_guest_could_have_its_files(paths: tuple[str, ...]) -> None:
    try:
        BundleTree(dict.fromkeys(paths, b""))
    except ValueError:
        with pytest.raises(ManifestError):
            check_bundle(tar_of(*map(entry, paths)))
    else:
        check_bundle(tar_of(*map(entry, paths)))


names = st.lists(st.sampled_from(["a", "b", "a-", "x" * 255, "x" * 256, "ä" * 128]), min_size=1, max_size=3).map(
    "/".join
)


@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_any_upload_is_refused_exactly_when_no_guest_could_have_its_files(paths: list[str]) -> None:
    test_an_upload_is_refused_exactly_when_no_guest_could_have_its_files(tuple(paths))


def test_a_name_that_is_not_utf_8_is_refused(folder: Path, tmp_path: Path) -> None:
    check_bundle(pax_entry("ä".encode()))
    with pytest.raises(ManifestError, match="not UTF-8"):
        check_bundle(pax_entry(b"\xff"))
    with pytest.raises(UnicodeEncodeError):
        BundleTree({os.fsdecode(b"\xff"): b""})
    (folder / os.fsdecode(b"\xff")).write_bytes(b"")
    with pytest.raises(ManifestError, match="not UTF-8; rename it"):
        pack_bundle(folder)


def test_a_file_where_a_folder_is_announced_is_refused() -> None:
    for entries in ((entry("a", tarfile.DIRTYPE), entry("a")), (entry("a"), entry("a", tarfile.DIRTYPE))):
        with pytest.raises(ManifestError, match="both as a file and as a folder"):
            check_bundle(tar_of(*entries))


def test_a_path_of_thousands_of_folders_is_refused_at_once() -> None:
    with pytest.raises(ManifestError, match="longer than 4096 bytes"):
        check_bundle(tar_of(entry("a/" * 500_000 + "a")))
    deep = ["/".join(f"{first}{n}" for n in range(600)) for first in "abcdefghijklmnopqrst"]
    with pytest.raises(ManifestError, match="more than 10000 folders"):
        check_bundle(tar_of(*map(entry, deep)))
