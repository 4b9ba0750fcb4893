"""What the demonstration of the review bot is made of, short of the host itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from faas.errors import ConfigError
from faas.testing import demo_review
from faas.testing.demo_review import change_of, main, news
from faas.testing.diffs import parse_diff
from faas.testing.github import FakeGitHub


def test_stored_commit_becomes_a_pull_request() -> None:
    change = change_of("", None)
    assert change.title == "Free an instance after its reply has gone out"
    pull = FakeGitHub().repository("octo/faas").open_pull(change.title, change.diff)
    changes = pull.repository.changes(pull.base_sha, pull.head_sha)
    assert [one.patch for one in changes] == [one.patch for one in parse_diff(change.diff)]
    assert len(changes) == 6


def test_diff_of_a_file_is_taken_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "fix.diff"
    file.write_text("diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-x\n+y\n")
    assert change_of("", file).title == "fix"


CUT = b"diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1,3 +1,3 @@\n-x\n+y\n"
TWICE = b"diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -3 +3 @@\n-x\n+y\n@@ -1 +1 @@\n-x\n+y\n"


@pytest.mark.parametrize("content", [None, b"no diff\n", b"\xff", CUT, TWICE])
def test_file_without_a_diff_is_refused_with_what_to_give(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "wrong"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="--diff takes a unified diff"):
        change_of("", file)


def test_commit_that_is_not_there_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--commit", "no-such-commit"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: git show")
    assert "leave --commit out" in told


Git = Callable[..., None]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Git in a repository of its own, where ``--commit`` is looked up."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    monkeypatch.setattr(demo_review, "ROOT", tmp_path)
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def run(*arguments: str) -> None:
        subprocess.run(("git", *arguments), cwd=tmp_path, env=environment, check=True, capture_output=True)

    run("init", "-b", "main")
    return run


def commit(git: Git, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    git("add", file.name)
    git("commit", "-m", f"Change {file.name}")


def test_commit_is_taken_with_what_was_there_before(git: Git, tmp_path: Path) -> None:
    commit(git, tmp_path / "a", b"old\n")
    commit(git, tmp_path / "a", b"new\n")
    change = change_of("HEAD", None)
    assert (change.title, change.base) == ("Change a", {"a": b"old\n"})


@pytest.mark.parametrize("rest", [b"", b"\n" * 20])
def test_commit_of_text_that_is_not_utf8_is_refused_with_what_to_name(git: Git, tmp_path: Path, rest: bytes) -> None:
    # In what the diff shows, or further away.
    commit(git, tmp_path / "latin", b"\xe4" + rest + b"old\n")
    commit(git, tmp_path / "latin", b"\xe4" + rest + b"new\n")
    with pytest.raises(ConfigError, match="HEAD changes text that is not UTF-8; name another --commit"):
        change_of("HEAD", None)


def test_merge_is_refused_with_what_to_name(git: Git, tmp_path: Path) -> None:
    commit(git, tmp_path / "a", b"a\n")
    git("checkout", "-b", "other")
    commit(git, tmp_path / "a", b"other\n")
    git("checkout", "main")
    commit(git, tmp_path / "a", b"main\n")
    git("merge", "-s", "ours", "other")
    with pytest.raises(ConfigError, match=r"HEAD: it has no changed file as git shows it.*name another --commit"):
        change_of("HEAD", None)


def test_diff_that_ends_early_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cut.diff"
    file.write_bytes(CUT)
    assert main(["--diff", str(file)]) == 1
    assert capsys.readouterr().err == (
        f"error: can't take {file}: a: the hunk '@@ -1,3 +1,3 @@' ends early; "
        "--diff takes a unified diff in UTF-8, as `git diff` writes it\n"
    )


def test_news_are_the_lines_that_were_not_there() -> None:
    assert news("", "a\nb") == ["a", "b"]
    assert news("head\none\ntail", "head\nONE\nmore\ntail") == ["ONE", "more"]
    assert news("same", "same") == []
