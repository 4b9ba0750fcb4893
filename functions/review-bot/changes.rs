// SPDX-License-Identifier: Apache-2.0
//! What a push has changed: which files are to be read, and where earlier findings are now.

use crate::diff::{shift, Hunk};
use crate::files::File;
use crate::findings::Finding;
use crate::skip::Patterns;
use std::collections::{BTreeMap, BTreeSet};

/// Paths of a pull request's files that no model may see: by their name, the name that they had, or a key in them.
///
/// Also those that were `known`: a later diff may not tell any more what a file was made of.
pub fn private<'a>(
    files: impl Iterator<Item = &'a File>, known: &[String], patterns: &Patterns,
) -> BTreeSet<String> {
    let mut private: BTreeSet<String> = known.iter().cloned().collect();
    for file in files {
        if file.is_private(patterns) || private.contains(&file.before) {
            private.insert(file.path.clone());
        }
    }
    private
}

/// The files of a comparison as far as they are the pull request's own, and whole those that no review has read yet.
///
/// A merge of the base branch brings changes into a comparison that are none of the pull request's.
pub fn fresh(compared: Vec<File>, whole: Vec<File>, unread: &[String]) -> Vec<File> {
    let mut compared: BTreeMap<String, File> = compared.into_iter().map(|file| (file.path.clone(), file)).collect();
    let mut fresh = Vec::new();
    for own in whole {
        if unread.contains(&own.path) {
            fresh.push(own);
        } else if let Some(mut file) = compared.remove(&own.path) {
            let had = file.hunks.len();
            if !own.hunks.is_empty() {
                file.hunks.retain(|hunk| own.hunks.iter().any(|other| overlap(hunk, other)));
            }
            if had == 0 || !file.hunks.is_empty() {
                fresh.push(file);
            }
        }
    }
    fresh
}

/// Whether both have a line of the new version in common.
fn overlap(one: &Hunk, other: &Hunk) -> bool {
    one.new_start < other.new_start + other.new_lines().max(1) && other.new_start < one.new_start + one.new_lines().max(1)
}

/// A finding where it is now, on line 0 where that can't be told; `None` when its line was changed or its file removed.
pub fn carried(finding: &Finding, files: &[File]) -> Option<Finding> {
    let before = |file: &File| if file.before.is_empty() { file.path.clone() } else { file.before.clone() };
    let file = match files.iter().find(|file| before(file) == finding.path) {
        Some(file) => file,
        None => return Some(finding.clone()),
    };
    if file.status == "removed" {
        return None;
    }
    let line = if file.is_untold() { 0 } else { shift(&file.hunks, finding.line)? };
    Some(Finding { path: file.path.clone(), line, ..finding.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::parse;
    use crate::findings::Severity;

    fn file(path: &str, patch: &str) -> File {
        File {
            path: path.to_owned(),
            before: String::new(),
            status: "modified".to_owned(),
            added: 1,
            removed: 1,
            shown: !patch.is_empty(),
            crowded: false,
            commit: String::new(),
            hunks: parse(patch),
        }
    }

    #[test]
    fn hunks_of_the_base_branch_are_left_out() {
        let compared = file("a.py", "@@ -1 +1 @@\n-a\n+theirs\n@@ -50 +50 @@\n-a\n+ours");
        let whole = file("a.py", "@@ -48,3 +48,3 @@\n x\n y\n-b\n+ours");
        let fresh = fresh(
            vec![compared, file("theirs.py", "@@ -1 +1 @@\n-a\n+b"), file("b.py", "@@ -1 +1 @@\n-a\n+theirs")],
            vec![whole, file("b.py", "@@ -9 +9 @@\n-a\n+b"), file("old.py", "@@ -1 +1 @@\n-a\n+b")],
            &[],
        );
        assert_eq!(fresh.len(), 1);
        assert_eq!(fresh[0].hunks.iter().map(|hunk| hunk.new_start).collect::<Vec<_>>(), [50]);
    }

    #[test]
    fn files_that_were_never_read_are_taken_whole() {
        let whole = vec![file("a.py", "@@ -1 +1 @@\n-a\n+b\n@@ -9 +9 @@\n-a\n+b"), file("b.py", "@@ -1 +1 @@\n-a\n+b")];
        let fresh = fresh(vec![file("a.py", "@@ -9 +9 @@\n-a\n+b")], whole, &["a.py".to_owned(), "gone.py".to_owned()]);
        assert_eq!(fresh.iter().map(|file| (file.path.as_str(), file.hunks.len())).collect::<Vec<_>>(), [("a.py", 2)]);
    }

    #[test]
    fn findings_move_with_their_lines_and_lose_them_where_nobody_can_tell() {
        let finding = Finding {
            path: "a.py".into(), line: 5, severity: Severity::Low, title: "t".into(), detail: String::new(),
        };
        let line = |patch: &str| carried(&finding, &[file("a.py", patch)]).map(|finding| finding.line);
        assert_eq!(line("@@ -0,0 +1,2 @@\n+a\n+b"), Some(7));
        assert_eq!(line("@@ -5 +5 @@\n-a\n+b"), None);
        assert_eq!(line(""), Some(0));
        assert_eq!(carried(&finding, &[file("b.py", "")]), Some(finding.clone()));
        let renamed = File { before: "a.py".into(), ..file("b.py", "@@ -1 +1 @@\n-a\n+b") };
        assert_eq!(carried(&finding, &[renamed]).map(|finding| (finding.path, finding.line)), Some(("b.py".into(), 5)));
        let removed = File { status: "removed".into(), ..file("a.py", "") };
        assert_eq!(carried(&finding, &[removed]), None);
    }

    #[test]
    fn what_was_private_stays_so() {
        let patterns = Patterns::new("");
        let renamed = File { before: ".env".into(), ..file("config.txt", "@@ -1 +1 @@\n-a\n+b") };
        let key = file("deploy.sh", "@@ -1 +1 @@\n-a\n+-----BEGIN PRIVATE KEY-----");
        // A lock file by its name, too.
        let lock = File { before: ".env".into(), ..file("x.lock", "") };
        let again = File { before: "config.txt".into(), ..file("settings.txt", "") };
        let files = [renamed, key, lock, file("a.py", "@@ -1 +1 @@\n-a\n+b"), file("b/.env", ""), again];
        let found = private(files.iter(), &["known.txt".to_owned()], &patterns);
        let found: Vec<String> = found.into_iter().collect();
        assert_eq!(found, ["b/.env", "config.txt", "deploy.sh", "known.txt", "settings.txt", "x.lock"]);
    }
}
