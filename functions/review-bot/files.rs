// SPDX-License-Identifier: Apache-2.0
//! The changed files of a pull request, and which of them are reviewed.

use crate::diff::{self, Hunk};
use crate::json_out::{elements, integer, string};
use crate::pack::visible;
use crate::skip::{is_encoded, is_private_key, reason_of_lines, Patterns, PRIVATE};
use faas::json::Json;

/// So many lines of nothing but encoded bytes may be from the middle of a key, whose head is not in the diff.
const KEY_LINES: usize = 3;

/// One changed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: String,
    /// The name that it had before, empty if that is the same.
    pub before: String,
    pub status: String,
    pub added: u64,
    pub removed: u64,
    /// Whether GitHub gave its diff.
    pub shown: bool,
    /// Whether there was no more room for it.
    pub crowded: bool,
    /// The commit that it is listed for, if that was said.
    pub commit: String,
    pub hunks: Vec<Hunk>,
}

impl File {
    fn read(of: &Json, room: &mut usize) -> Option<File> {
        let path = string(of, "filename");
        let patch = of.get("patch").and_then(Json::text);
        let size = patch.map_or(0, str::len);
        let crowded = size > *room;
        *room -= if crowded { 0 } else { size };
        (!path.is_empty()).then(|| File {
            path: path.to_owned(),
            before: string(of, "previous_filename").to_owned(),
            status: string(of, "status").to_owned(),
            added: integer(of, "additions").unwrap_or(0),
            removed: integer(of, "deletions").unwrap_or(0),
            shown: patch.is_some(),
            crowded,
            commit: string(of, "commit").to_owned(),
            hunks: patch.filter(|_| !crowded).map_or_else(Vec::new, diff::parse),
        })
    }

    /// The files of one page of `github`, with as much of their diffs as there is room for, in bytes.
    pub fn page(of: &Json, room: &mut usize) -> Vec<File> {
        elements(of, "files").iter().filter_map(|one| File::read(one, room)).collect()
    }

    /// One line about it, for the plan.
    pub fn title(&self) -> String {
        let status = match self.status.as_str() {
            "added" => "new",
            "renamed" => "renamed and changed",
            _ => "changed",
        };
        format!("{} ({status}, +{} -{})", visible(&self.path), self.added, self.removed)
    }

    /// Whether no model may see it: by its name, the name that it had, or a private key in its diff.
    pub fn is_private(&self, patterns: &Patterns) -> bool {
        // Its diff shows what it was, too.
        let has_key = |hunk: &Hunk| {
            hunk.lines.iter().any(|line| is_private_key(&line.text))
                || hunk.lines.windows(KEY_LINES).any(|some| some.iter().all(|line| is_encoded(&line.text)))
        };
        patterns.is_private(&self.path) || patterns.is_private(&self.before) || self.hunks.iter().any(has_key)
    }

    /// Whether it is listed for another commit than that. One that was removed is named by a commit that has it.
    pub fn is_of_another(&self, head: &str) -> bool {
        self.status != "removed" && !self.commit.is_empty() && self.commit != head
    }

    /// Whether it was changed, and its diff is not here.
    pub fn is_untold(&self) -> bool {
        self.crowded || (!self.shown && self.added + self.removed > 0)
    }

    /// Why it is not reviewed, if it is not.
    pub fn reason(&self, patterns: &Patterns) -> Option<&'static str> {
        let changes = self.added + self.removed;
        if self.status == "removed" {
            return Some("deleted");
        }
        if let Some(reason) = patterns.reason(&self.path) {
            return Some(reason);
        }
        if self.is_private(patterns) {
            return Some(PRIVATE);
        }
        if self.status == "renamed" && changes == 0 {
            return Some("renamed without a change");
        }
        if !self.shown && changes > 0 {
            return Some("too large: GitHub gives no diff of it");
        }
        if self.crowded {
            return Some("too large: this pull request has more text than is held at once");
        }
        if self.hunks.is_empty() {
            return Some("no text in its diff: binary, empty, or only its mode changed");
        }
        if self.hunks.iter().all(|hunk| hunk.targets().is_empty()) {
            return Some("lines were removed, none added");
        }
        let lines = self.hunks.iter().flat_map(Hunk::numbered);
        reason_of_lines(lines.filter_map(|(number, line)| number.map(|number| (number, line.text.as_str()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(members: &str) -> File {
        let page = Json::parse(&format!(r#"{{"files":[{{"filename":"src/a.py",{members}}}]}}"#)).unwrap();
        File::page(&page, &mut 1000).remove(0)
    }

    #[test]
    fn every_kind_of_change_is_reviewed_or_has_its_reason() {
        let patterns = Patterns::new("");
        for (members, reason) in [
            (r#""status":"modified","additions":1,"patch":"@@ -1 +1 @@\n-a\n+b""#, None),
            (r#""status":"renamed","previous_filename":"b","additions":1,"patch":"@@ -1 +1 @@\n-a\n+b""#, None),
            (r#""status":"renamed","previous_filename":"b","additions":0"#, Some("renamed without a change")),
            (r#""status":"removed","deletions":1,"patch":"@@ -1 +0,0 @@\n-a""#, Some("deleted")),
            (r#""status":"modified","additions":9000"#, Some("too large: GitHub gives no diff of it")),
            (
                r#""status":"added","additions":0"#,
                Some("no text in its diff: binary, empty, or only its mode changed"),
            ),
            (r#""status":"changed","deletions":1,"patch":"@@ -1 +0,0 @@\n-a""#, Some("lines were removed, none added")),
            (r#""status":"added","additions":1,"patch":"@@ -0,0 +1 @@\n+# @generated by x""#, Some("generated")),
            (
                r#""status":"renamed","previous_filename":"x/.env","additions":1,"patch":"@@ -1 +1 @@\n-a\n+b""#,
                Some(PRIVATE),
            ),
            (
                r#""status":"modified","additions":1,"patch":"@@ -1,3 +1,3 @@\n MIIEowIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gun\n-VTLw7onLRnrq0/IzW7yWR7QkrmBL7jTKEn5u+qKhbwKfBstIs+bMY2Zkp18gnTxK\n+LxoS2tFczGkPLPgizskuemMghRniWaoLcyehkd3qqGElvW/VDL5AaWTg0nLVkjRo\n 9z+40RQzuVaE8AkAFmxZzow3x+VJYKdjykkJ0iT9wCS0DRTXu269V264Vf/3jvre""#,
                Some(PRIVATE),
            ),
            (
                r#""status":"modified","additions":1,"patch":"@@ -1 +1 @@\n------BEGIN RSA PRIVATE KEY-----\n+b""#,
                Some(PRIVATE),
            ),
        ] {
            assert_eq!(file(members).reason(&patterns), reason, "{members}");
        }
    }

    #[test]
    fn diffs_beyond_the_room_are_listed_and_no_name_begins_a_line() {
        let one = r#"{"filename":"NAME","status":"modified","additions":1,"patch":"@@ -1 +1 @@\n-a\n+b"}"#;
        let page = format!(r#"{{"files":[{},{}]}}"#, one, one.replace("NAME", "b\\nFILE c"));
        let mut room = 25;
        let files = File::page(&Json::parse(&page).unwrap(), &mut room);
        assert_eq!((files[0].reason(&Patterns::new("")), room), (None, 8));
        assert!(files[1].reason(&Patterns::new("")).unwrap().starts_with("too large: this"));
        assert_eq!(files[1].title(), "b<U+000A>FILE c (changed, +1 -0)");
    }

    #[test]
    fn what_is_no_file_is_left_out() {
        assert_eq!(File::page(&Json::Null, &mut 9), []);
        assert_eq!(File::page(&Json::parse(r#"{"files":[{"filename":""},{},3]}"#).unwrap(), &mut 9), []);
        assert_eq!(file(r#""status":"added","additions":2"#).title(), "src/a.py (new, +2 -0)");
    }
}
