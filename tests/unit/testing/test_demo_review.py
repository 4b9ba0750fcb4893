"""What the demonstration of the review bot is made of, short of the host itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from faas.errors import ConfigError
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


@pytest.mark.parametrize("content", [None, b"no diff\n", b"\xff"])
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


def test_news_are_the_lines_that_were_not_there() -> None:
    assert news("", "a\nb") == ["a", "b"]
    assert news("head\none\ntail", "head\nONE\nmore\ntail") == ["ONE", "more"]
    assert news("same", "same") == []
