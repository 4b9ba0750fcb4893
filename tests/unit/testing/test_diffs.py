"""Unified diffs for the fake GitHub: what git writes is read, applied, and made again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.testing.diffs import DiffError, Link, apply_diff, apply_file, diff_trees, guess_old, parse_diff

EVERYTHING = """\
commit 1234
Author: Ann

    Change everything

diff --git a/added.txt b/added.txt
new file mode 100644
index 0000000..ce01362
--- /dev/null
+++ b/added.txt
@@ -0,0 +1,2 @@
+--- not a header
+hello
diff --git "a/b\\303\\274cher/\\344\\273\\245.md" "b/b\\303\\274cher/\\344\\273\\245.md"
index 257cc56..5716ca5 100644
--- "a/b\\303\\274cher/\\344\\273\\245.md"
+++ "b/b\\303\\274cher/\\344\\273\\245.md"
@@ -1 +1 @@
-old
\\ No newline at end of file
+new
\\ No newline at end of file
diff --git a/gone.txt b/gone.txt
deleted file mode 100644
index 257cc56..0000000
--- a/gone.txt
+++ /dev/null
@@ -1 +0,0 @@
-bye
diff --git a/logo.png b/logo.png
index 1..2 100644
Binary files a/logo.png and b/logo.png differ
diff --git a/old name.txt b/new name.txt
similarity index 90%
rename from old name.txt
rename to new name.txt
index 1..2 100644
--- a/old name.txt\t
+++ b/new name.txt\t
@@ -10,3 +10,4 @@ heading
 ten
-eleven\r
+eleven
+and a half
 twelve
diff --git a/run.sh b/run.sh
old mode 100644
new mode 100755
diff --git a/x/same.txt b/y/same.txt
similarity index 100%
rename from x/same.txt
rename to y/same.txt
"""


def test_every_kind_of_file_is_read() -> None:
    found = parse_diff(EVERYTHING)
    assert [(one.path, one.status, one.old_path, one.additions, one.deletions, one.binary) for one in found] == [
        ("added.txt", "added", "", 2, 0, False),
        ("bücher/以.md", "modified", "", 1, 1, False),
        ("gone.txt", "removed", "", 0, 1, False),
        ("logo.png", "modified", "", 0, 0, True),
        ("new name.txt", "renamed", "old name.txt", 2, 1, False),
        ("run.sh", "changed", "", 0, 0, False),
        ("y/same.txt", "renamed", "x/same.txt", 0, 0, False),
    ]
    assert found[1].patch == "@@ -1 +1 @@\n-old\n\\ No newline at end of file\n+new\n\\ No newline at end of file"
    assert found[4].patch.startswith("@@ -10,3 +10,4 @@ heading\n ten\n-eleven\r\n+eleven")


def test_diff_is_applied_to_what_it_was_made_of() -> None:
    diffs = parse_diff(EVERYTHING)
    old = {one.before: guess_old(one) for one in diffs if one.status != "added"} | {"other": b"stays"}
    assert old["old name.txt"] == b"\n" * 9 + b"ten\neleven\r\ntwelve\n"
    new = apply_diff(diffs, old)
    assert sorted(new) == ["added.txt", "bücher/以.md", "logo.png", "new name.txt", "other", "run.sh", "y/same.txt"]
    assert new["added.txt"] == b"--- not a header\nhello\n"
    assert new["bücher/以.md"] == b"new"
    assert new["new name.txt"] == b"\n" * 9 + b"ten\neleven\nand a half\ntwelve\n"
    assert b"\x00" in new["logo.png"]


def test_diff_that_does_not_fit_is_refused() -> None:
    (diff,) = parse_diff("diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n")
    with pytest.raises(DiffError, match="does not fit"):
        apply_file(diff, b"a\nx\n")
    with pytest.raises(DiffError, match="not there"):
        apply_diff([diff], {})


def test_symbolic_links_stay_links() -> None:
    patch = "--- a/l\n+++ b/l\n@@ -1 +1 @@\n-old\n\\ No newline at end of file\n+../new\n\\ No newline at end of file\n"
    (changed,) = parse_diff("diff --git a/l b/l\nindex 3367afd..3e75765 120000\n" + patch)
    assert guess_old(changed) == Link(b"old")
    assert isinstance(guess_old(changed), Link)
    added = "new file mode 120000\n--- /dev/null\n+++ b/m\n@@ -0,0 +1 @@\n+.env\n\\ No newline at end of file\n"
    diffs = [changed, *parse_diff("diff --git a/m b/m\n" + added), *parse_diff(EVERYTHING)[:1]]
    new = apply_diff(diffs, {"l": Link(b"old")})
    assert (new["l"], new["m"]) == (b"../new", b".env")
    assert [path for path, content in new.items() if isinstance(content, Link)] == ["l", "m"]


def test_hunk_that_ends_early_is_refused() -> None:
    with pytest.raises(DiffError, match="ends early"):
        parse_diff("diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,3 +1,2 @@\n a\n-b\n")


def test_moved_file_is_a_rename_and_bytes_are_binary() -> None:
    made = diff_trees({"a": b"same\n", "b": b"\xff"}, {"c": b"same\n", "b": b"\xfe"})
    assert [(one.path, one.status, one.old_path, one.binary) for one in made] == [
        ("b", "modified", "", True),
        ("c", "renamed", "a", False),
    ]


_TEXT = st.text(alphabet="ab\n\r ü\x0c", max_size=40).map(str.encode)


@given(_TEXT, _TEXT)
def test_what_is_made_of_two_texts_leads_from_one_to_the_other(old: bytes, new: bytes) -> None:
    made = diff_trees({"f": old}, {"f": new})
    assert apply_diff(made, {"f": old}) == {"f": new}


def test_git_reads_what_is_made_and_is_read_itself(tmp_path: Path) -> None:
    old, new = {"f": b"a\nb\nc\n", "g": b"x"}, {"f": b"a\nB\nc\nd", "g": b"x\n"}
    for folder, tree in (("old", old), ("new", new)):
        (tmp_path / folder).mkdir()
        for name, content in tree.items():
            (tmp_path / folder / name).write_bytes(content)
    told = subprocess.run(
        ["git", "diff", "--no-index", "--no-prefix", "old", "new"], cwd=tmp_path, capture_output=True, check=False
    ).stdout.decode()
    told = told.replace("old/", "a/").replace("new/", "b/")
    assert [one.patch for one in parse_diff(told)] == [one.patch for one in diff_trees(old, new)]
