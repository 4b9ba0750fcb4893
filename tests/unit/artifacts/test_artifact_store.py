"""The artifact store: whole files only, for the host's user only, and no native code that this host did not make."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faas.artifacts.store import ArtifactStore, disk_watched, native_key
from faas.errors import ArtifactMissingError, ArtifactTamperedError, ConfigError, StateError

KEY = native_key("a" * 64, "", "fingerprint")
OTHER = native_key("b" * 64, "", "fingerprint")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def put(store: ArtifactStore, key: str, contents: bytes) -> Path:
    made = store.scratch / "made"
    made.write_bytes(contents)
    store.put_native(key, made)
    return store.open_native(key)


def overwrite(path: Path, contents: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(contents)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- native code


def test_native_code_comes_back_as_it_was_stored(store) -> None:
    assert put(store, KEY, b"native").read_bytes() == b"native"
    assert store.has_native(KEY)
    assert not list(store.scratch.iterdir())


@pytest.mark.parametrize("at", [0, 50_000, 99_999])
def test_a_flipped_byte_is_tampering(store, at: int) -> None:
    path = put(store, KEY, bytes(100_000))
    contents = bytearray(path.read_bytes())
    contents[at] ^= 1
    overwrite(path, bytes(contents))

    with pytest.raises(ArtifactTamperedError):
        store.open_native(KEY)
    assert not store.has_native(KEY)


LEAF = 512 * 1024
LARGE = b"".join(bytes([i]) * LEAF for i in range(9)) + b"the rest"
"""Hashed in ten parts, by several threads."""


def test_large_code_comes_back_as_it_was_stored(store) -> None:
    assert put(store, KEY, LARGE).read_bytes() == LARGE
    with store.sealed_native(KEY) as sealed:
        assert sealed.read_bytes() == LARGE


@pytest.mark.parametrize("at", [0, LEAF - 1, LEAF, 5 * LEAF + 7, 9 * LEAF, len(LARGE) - 1])
def test_a_flipped_byte_of_large_code_is_tampering_wherever_it_is(store, at: int) -> None:
    changed = bytearray(LARGE)
    changed[at] ^= 1
    overwrite(put(store, KEY, LARGE), bytes(changed))

    with pytest.raises(ArtifactTamperedError), store.sealed_native(KEY):
        pass


@pytest.mark.parametrize(
    "changed",
    [
        LARGE[LEAF : 2 * LEAF] + LARGE[:LEAF] + LARGE[2 * LEAF :],
        LARGE[:-8],
        LARGE[: 8 * LEAF],
        LARGE[:LEAF] + LARGE,
        LARGE + bytes(LEAF),
    ],
    ids=["two parts swapped", "cut at the last part", "without two parts", "one part twice", "one part more"],
)
def test_other_parts_than_the_stored_ones_are_tampering(store, changed: bytes) -> None:
    overwrite(put(store, KEY, LARGE), changed)

    with pytest.raises(ArtifactTamperedError), store.sealed_native(KEY):
        pass


def test_a_mac_of_an_older_host_is_refused_and_storing_again_replaces_it(store, tmp_path: Path) -> None:
    path = put(store, KEY, b"native")
    secret = (tmp_path / "keys" / "artifact.key").read_bytes()
    older = hmac.digest(secret, bytes.fromhex(KEY) + hashlib.sha256(b"native").digest(), "sha256")
    overwrite(path.with_suffix(".mac"), older)

    with pytest.raises(ArtifactTamperedError):
        store.open_native(KEY)
    assert put(store, KEY, b"native").read_bytes() == b"native"


def test_when_a_hashing_thread_fails_nothing_is_stored_or_proved(store, monkeypatch) -> None:
    """The part that nobody hashed must not count as one that fits."""
    path = put(store, KEY, LARGE)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    sha256, caller = hashlib.sha256, threading.current_thread()

    def failing(contents: bytes = b""):
        if threading.current_thread() is not caller:
            raise MemoryError
        failed.wait()
        return sha256(contents)

    failed = threading.Event()
    start = threading.Thread.start

    def start_and_end(thread: threading.Thread) -> None:
        start(thread)
        thread.join()
        failed.set()

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(threading.Thread, "start", start_and_end)
    monkeypatch.setattr(hashlib, "sha256", failing)
    with pytest.raises(MemoryError):
        store.open_native(KEY)
    monkeypatch.setattr(hashlib, "sha256", sha256)
    assert store.open_native(KEY) == path


@pytest.mark.parametrize("contents", [b"", b"nativ", b"native\0"])
def test_a_cut_or_longer_file_is_tampering(store, contents: bytes) -> None:
    overwrite(put(store, KEY, b"native"), contents)

    with pytest.raises(ArtifactTamperedError):
        store.open_native(KEY)


def test_artifacts_swapped_between_keys_are_tampering_even_with_their_macs(store) -> None:
    one, two = put(store, KEY, b"one"), put(store, OTHER, b"two")
    for suffix in (".cwasm", ".mac"):
        first, second = one.with_suffix(suffix), two.with_suffix(suffix)
        contents = first.read_bytes()
        overwrite(first, second.read_bytes())
        overwrite(second, contents)

    for key in (KEY, OTHER):
        with pytest.raises(ArtifactTamperedError):
            store.open_native(key)


def test_code_of_another_host_is_tampering(tmp_path: Path) -> None:
    ours, theirs = ArtifactStore(tmp_path / "ours"), ArtifactStore(tmp_path / "theirs")
    put(ours, KEY, b"native")
    foreign = put(theirs, KEY, b"native")
    overwrite(ours.open_native(KEY).with_suffix(".mac"), foreign.with_suffix(".mac").read_bytes())

    with pytest.raises(ArtifactTamperedError):
        ours.open_native(KEY)


@pytest.mark.parametrize("suffix", [".cwasm", ".mac"])
def test_a_missing_half_is_missing(store, suffix: str) -> None:
    put(store, KEY, b"native").with_suffix(suffix).unlink()

    with pytest.raises(ArtifactMissingError):
        store.open_native(KEY)


def test_storing_over_tampered_code_heals_it(store) -> None:
    overwrite(put(store, KEY, b"native"), b"evil")

    assert put(store, KEY, b"native").read_bytes() == b"native"


def test_two_that_put_under_one_key_at_once_leave_one_whole_pair(store, tmp_path: Path, monkeypatch) -> None:
    """The second comes at the worst moment: the first one's code is in place, and not yet its HMAC."""
    one, other = ArtifactStore(tmp_path), ArtifactStore(tmp_path)
    waits_or_done = threading.Event()
    lock, write = fcntl.flock, one._write_whole

    def put_other() -> None:
        made = store.scratch / "other"
        made.write_bytes(b"made otherwise")
        other.put_native(KEY, made)
        waits_or_done.set()

    second = threading.Thread(target=put_other)

    def lock_told(descriptor: int, operation: int) -> None:
        if threading.current_thread() is second:
            waits_or_done.set()
        lock(descriptor, operation)

    def meet_other(path: Path, contents: bytes) -> None:
        second.start()
        assert waits_or_done.wait(10)
        write(path, contents)

    monkeypatch.setattr("fcntl.flock", lock_told)
    monkeypatch.setattr(one, "_write_whole", meet_other)

    assert put(one, KEY, b"native").read_bytes() == b"native"
    second.join(10)
    assert not second.is_alive()
    assert store.open_native(KEY).read_bytes() == b"native"
    assert not list(store.scratch.iterdir())


def test_many_that_put_under_one_key_at_once_leave_one_whole_pair(tmp_path: Path) -> None:
    store, start = ArtifactStore(tmp_path), threading.Barrier(6)

    def put_mine(key: str, number: int) -> None:
        made = store.scratch / f"made-{number}"
        made.write_bytes(b"native %d" % number)
        start.wait(10)
        store.put_native(key, made)
        store.open_native(key)

    with ThreadPoolExecutor(6) as threads:
        for n in range(10):
            key = native_key(f"{n:064x}", "", "mark")
            for put_one in [threads.submit(put_mine, key, number) for number in range(6)]:
                put_one.result(10)
            assert store.has_native(key)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 63 + "/"])
def test_a_name_that_is_no_digest_leads_nowhere(store, name: str) -> None:
    for opens in (store.open_native, store.wasm_path, store.bundle_path):
        with pytest.raises(ArtifactMissingError):
            opens(name)


@pytest.mark.parametrize(
    "parts",
    [
        ("c" * 64, "", "fingerprint"),
        ("a" * 64, "warm", "fingerprint"),
        ("a" * 64, "", "other settings"),
        ("a" * 63, "a", "fingerprint"),
    ],
)
def test_another_module_snapshot_or_engine_gives_another_key(parts: tuple[str, str, str]) -> None:
    assert native_key(*parts) != KEY


# --- modules and bundles


def test_modules_are_kept_by_digest(store) -> None:
    digest = store.put_wasm(b"\0asm")

    assert digest == hashlib.sha256(b"\0asm").hexdigest()
    assert store.wasm_path(digest).read_bytes() == b"\0asm"
    assert store.put_wasm(b"\0asm") == digest


def test_bundles_are_kept_by_digest(store) -> None:
    assert store.bundle_path(store.put_bundle(b"tar")).read_bytes() == b"tar"


def test_a_changed_module_is_tampering_until_it_is_kept_again(store) -> None:
    digest = store.put_wasm(b"\0asm")
    overwrite(store.wasm_path(digest), b"\0asn")

    with pytest.raises(ArtifactTamperedError):
        store.wasm_path(digest)
    store.put_wasm(b"\0asm")
    assert store.wasm_path(digest).read_bytes() == b"\0asm"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_come_back(store, contents: bytes) -> None:
    assert store.wasm_path(store.put_wasm(contents)).read_bytes() == contents


# --- the folder


def test_everything_is_for_the_hosts_user_only(store, tmp_path: Path) -> None:
    put(store, KEY, b"native")
    store.put_wasm(b"\0asm")
    store.put_bundle(b"tar")
    below = [path for folder in ("artifacts", "keys") for path in [tmp_path / folder, *(tmp_path / folder).rglob("*")]]

    assert {mode(path) for path in below if path.is_dir()} == {0o700}
    assert {mode(path) for path in below if path.is_file()} <= {0o400, 0o600}


def test_the_key_is_made_once_and_shared_by_later_stores(store, tmp_path: Path) -> None:
    key = (tmp_path / "keys/artifact.key").read_bytes()
    put(store, KEY, b"native")

    assert len(key) == 32
    assert ArtifactStore(tmp_path).open_native(KEY).read_bytes() == b"native"
    assert (tmp_path / "keys/artifact.key").read_bytes() == key


def test_a_key_that_others_may_read_is_refused_with_the_command_to_run(store, tmp_path: Path) -> None:
    (tmp_path / "keys/artifact.key").chmod(0o640)

    with pytest.raises(ConfigError, match=r"chmod 600 .*artifact\.key"):
        ArtifactStore(tmp_path)


def test_a_short_key_is_refused(store, tmp_path: Path) -> None:
    (tmp_path / "keys/artifact.key").write_bytes(b"short")

    with pytest.raises(ConfigError, match="32 bytes"):
        ArtifactStore(tmp_path)


def test_a_home_that_is_a_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")

    with pytest.raises(ConfigError, match="check --home"):
        ArtifactStore(tmp_path / "home")


def test_remove_unreferenced_keeps_what_is_named(store) -> None:
    kept, gone = store.put_wasm(b"kept"), store.put_wasm(b"gone")
    bundle, no_bundle = store.put_bundle(b"kept"), store.put_bundle(b"gone")
    put(store, KEY, b"kept")
    put(store, OTHER, b"gone")

    n_removed = store.remove_unreferenced({kept}, {KEY}, {bundle})

    assert n_removed == 4  # a module, a bundle, native code and its MAC
    assert store.wasm_path(kept)
    assert store.bundle_path(bundle)
    assert store.open_native(KEY)
    for opens, name in ((store.wasm_path, gone), (store.bundle_path, no_bundle), (store.open_native, OTHER)):
        with pytest.raises(ArtifactMissingError):
            opens(name)


def test_clear_scratch_removes_what_a_killed_host_left(store) -> None:
    (store.scratch / "job-1").mkdir()
    (store.scratch / "job-1" / "module.wasm").write_bytes(b"")
    (store.scratch / "file").write_bytes(b"")

    store.clear_scratch()

    assert not list(store.scratch.iterdir())


def test_a_failed_write_leaves_no_temporary_file(store, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(StateError, match="No space"):
        store.put_wasm(b"\0asm")

    assert not [path for path in store.scratch.parent.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_or_broken_disk_is_a_state_error_for_every_put(store, monkeypatch, number: int) -> None:
    made = store.scratch / "made"
    made.write_bytes(b"native")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    for put_it in (
        lambda: store.put_wasm(b"\0asm"),
        lambda: store.put_bundle(b"tar"),
        lambda: store.put_native(KEY, made),
    ):
        with pytest.raises(StateError, match="disk full") as caught:
            put_it()
        assert os.strerror(number) in caught.value.message


def test_an_os_error_that_is_not_the_disks_stays_what_it_is() -> None:
    with pytest.raises(PermissionError), disk_watched():
        raise PermissionError(errno.EPERM, "no")


def test_sweeping_while_a_named_artifact_is_put_harms_neither(store, monkeypatch) -> None:
    """A sweep at the worst moment: the file is written and not yet renamed."""
    rename = os.replace

    def sweep_first(old: Path, new: Path) -> None:
        assert store.remove_unreferenced(set(), {KEY}, set()) == 0
        rename(old, new)

    monkeypatch.setattr("os.replace", sweep_first)
    assert put(store, KEY, b"native").read_bytes() == b"native"


def test_half_written_files_never_stand_where_whole_ones_do(store, monkeypatch) -> None:
    asides = []
    rename = os.replace
    monkeypatch.setattr("os.replace", lambda old, new: (asides.append(Path(old)), rename(old, new)))

    store.put_wasm(b"one")
    store.put_bundle(b"one")
    put(store, KEY, b"native")

    assert {path.parent for path in asides} == {store.scratch}
    assert len(set(asides)) == len(asides)


def test_sealed_native_code_stays_as_it_was_proved(tmp_path):
    store = ArtifactStore(tmp_path)
    key = native_key("a" * 64, "", "mark")
    file = store.scratch / "native"
    file.write_bytes(b"code" * 1000)
    store.put_native(key, file)
    stored = store.open_native(key)
    with store.sealed_native(key) as sealed:
        stored.chmod(0o600)
        stored.write_bytes(b"evil")
        assert sealed.read_bytes() == b"code" * 1000
        with sealed.open("r+b", buffering=0) as file, pytest.raises(OSError, match="not permitted"):
            file.write(b"x")
    with pytest.raises(ArtifactTamperedError), store.sealed_native(key):
        pass


def test_sealed_native_code_that_is_missing_is_said_to_be(tmp_path):
    store = ArtifactStore(tmp_path)
    with pytest.raises(ArtifactMissingError), store.sealed_native("0" * 64):
        pass
