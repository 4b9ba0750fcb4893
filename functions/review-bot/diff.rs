// SPDX-License-Identifier: Apache-2.0
//! Unified diffs of one file, as GitHub's `patch` has them or with git's own lines before the first hunk.

/// What a line of a hunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In both versions.
    Context,
    /// In the new version only.
    Added,
    /// In the old version only.
    Removed,
}

/// One line, without its line end (CR LF is one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: Kind,
    pub text: String,
    /// The file ends with this line, and without a line end.
    pub unended: bool,
}

/// Lines that belong together, and where they are in both versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunk {
    /// First line in the old version; of a hunk without old lines, the line before it.
    pub old_start: u64,
    /// The same in the new version.
    pub new_start: u64,
    /// What git says the hunk is in: the line of a function, often.
    pub section: String,
    pub lines: Vec<Line>,
}

impl Hunk {
    /// How many lines of the old version it has.
    pub fn old_lines(&self) -> u64 {
        self.lines.iter().filter(|line| line.kind != Kind::Added).count() as u64
    }

    /// How many lines of the new version it has.
    pub fn new_lines(&self) -> u64 {
        self.lines.iter().filter(|line| line.kind != Kind::Removed).count() as u64
    }

    /// Each line with its number in the new version; a removed one has none.
    pub fn numbered(&self) -> impl Iterator<Item = (Option<u64>, &Line)> {
        let mut next = self.new_start;
        self.lines.iter().map(move |line| {
            if line.kind == Kind::Removed {
                return (None, line);
            }
            next += 1;
            (Some(next - 1), line)
        })
    }

    /// The lines of the new version that a finding may be about: those that were added, or all where none was.
    pub fn targets(&self) -> Vec<u64> {
        let of = |wanted: fn(&Line) -> bool| {
            self.numbered().filter(|(_, line)| wanted(line)).filter_map(|(number, _)| number).collect::<Vec<_>>()
        };
        let added = of(|line| line.kind == Kind::Added);
        if added.is_empty() {
            of(|_| true)
        } else {
            added
        }
    }

    /// Whether the new version has that line in this hunk.
    pub fn has(&self, line: u64) -> bool {
        self.numbered().any(|(number, _)| number == Some(line))
    }

    /// The hunk in pieces of at most so many lines.
    pub fn split(&self, max_lines: usize) -> Vec<Hunk> {
        let (mut old_start, mut new_start) = (self.old_start, self.new_start);
        let pieces = self.lines.chunks(max_lines.max(1)).map(|lines| {
            let piece = Hunk { old_start, new_start, section: self.section.clone(), lines: lines.to_vec() };
            old_start += piece.old_lines();
            new_start += piece.new_lines();
            piece
        });
        pieces.collect()
    }
}

/// The hunks of a file's diff; none when there is no text in it (a binary file, a rename, another mode). A hunk that is
/// cut off has the lines that are there; what is no hunk is skipped.
pub fn parse(patch: &str) -> Vec<Hunk> {
    let mut hunks: Vec<Hunk> = Vec::new();
    // Lines of the old and of the new version that the current hunk still has.
    let (mut old, mut new) = (0, 0);
    for raw in patch.split('\n') {
        if raw.starts_with('\\') {
            // Belongs to the line before it, also behind the last one.
            if let Some(line) = hunks.last_mut().and_then(|hunk| hunk.lines.last_mut()) {
                line.unended = true;
            }
            continue;
        }
        if old == 0 && new == 0 {
            if let Some((hunk, old_lines, new_lines)) = header(raw) {
                hunks.push(hunk);
                old = old_lines;
                new = new_lines;
            }
            continue;
        }
        let hunk = hunks.last_mut().expect("lines are left of a hunk");
        // Some tools strip the space of an empty line of context.
        let (kind, text) = match raw.as_bytes().first() {
            None => (Kind::Context, ""),
            Some(b' ') => (Kind::Context, &raw[1..]),
            Some(b'+') => (Kind::Added, &raw[1..]),
            Some(b'-') => (Kind::Removed, &raw[1..]),
            Some(b'\r') if raw == "\r" => (Kind::Context, ""),
            Some(_) => {
                // Cut off; perhaps another hunk follows.
                old = 0;
                new = 0;
                if let Some((hunk, old_lines, new_lines)) = header(raw) {
                    hunks.push(hunk);
                    old = old_lines;
                    new = new_lines;
                }
                continue;
            }
        };
        old = if kind == Kind::Added { old } else { u64::saturating_sub(old, 1) };
        new = if kind == Kind::Removed { new } else { u64::saturating_sub(new, 1) };
        let text = text.strip_suffix('\r').unwrap_or(text);
        hunk.lines.push(Line { kind, text: text.to_owned(), unended: false });
    }
    // The last newline of the patch is no line of context.
    if let Some(hunk) = hunks.last_mut() {
        if patch.ends_with('\n') && (old > 0 || new > 0) {
            if let Some(Line { kind: Kind::Context, text, .. }) = hunk.lines.last() {
                if text.is_empty() {
                    hunk.lines.pop();
                }
            }
        }
    }
    hunks.retain(|hunk| !hunk.lines.is_empty());
    hunks
}

/// `@@ -1,2 +3,4 @@ section`, with the number of lines on both sides.
fn header(line: &str) -> Option<(Hunk, u64, u64)> {
    let rest = line.strip_prefix("@@ -")?;
    let (ranges, section) = rest.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let (old_start, old_lines) = range(old)?;
    let (new_start, new_lines) = range(new)?;
    let section = section.trim().to_owned();
    Some((Hunk { old_start, new_start, section, lines: Vec::new() }, old_lines, new_lines))
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (start, lines) = text.split_once(',').unwrap_or((text, "1"));
    let (start, lines): (u32, u32) = (start.parse().ok()?, lines.parse().ok()?);
    Some((u64::from(start), u64::from(lines)))
}

/// Where a line of the old version is in the new one; `None` where it was removed.
pub fn shift(hunks: &[Hunk], line: u64) -> Option<u64> {
    let mut moved = line as i64;
    for hunk in hunks {
        let old_lines = hunk.old_lines();
        if line < hunk.old_start || (old_lines == 0 && line == hunk.old_start) {
            break;
        }
        if old_lines > 0 && line < hunk.old_start + old_lines {
            let mut old = hunk.old_start;
            for (number, found) in hunk.numbered() {
                if found.kind == Kind::Added {
                    continue;
                }
                if old == line {
                    return number;
                }
                old += 1;
            }
            return None;
        }
        moved += hunk.new_lines() as i64 - old_lines as i64;
    }
    u64::try_from(moved).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(hunk: &Hunk) -> Vec<(Option<u64>, char, &str)> {
        let mark = |kind| match kind {
            Kind::Context => ' ',
            Kind::Added => '+',
            Kind::Removed => '-',
        };
        hunk.numbered().map(|(number, line)| (number, mark(line.kind), line.text.as_str())).collect()
    }

    #[test]
    fn hunks_have_the_numbers_of_the_new_lines() {
        let hunks = parse("@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n@@ -10,2 +10,3 @@ def f():\n x\n+y\n z");
        assert_eq!(hunks.len(), 2);
        assert_eq!(shape(&hunks[0]), [(Some(1), ' ', "a"), (None, '-', "b"), (Some(2), '+', "B"), (Some(3), ' ', "c")]);
        assert_eq!((hunks[1].section.as_str(), hunks[1].new_start), ("def f():", 10));
        assert_eq!(hunks[1].targets(), [11]);
        assert!(hunks[1].has(12) && !hunks[1].has(13) && !hunks[1].has(9));
    }

    #[test]
    fn a_range_without_a_length_is_one_line() {
        let hunks = parse("@@ -0,0 +1 @@\n+only");
        assert_eq!(shape(&hunks[0]), [(Some(1), '+', "only")]);
        let hunks = parse("@@ -7 +7 @@\n-a\n+b");
        assert_eq!(hunks[0].targets(), [7]);
    }

    #[test]
    fn a_file_without_a_last_newline_is_marked() {
        let hunks = parse("@@ -1 +1,2 @@\n-a\n\\ No newline at end of file\n+a\n+b\n\\ No newline at end of file\n");
        assert_eq!(hunks[0].lines.iter().map(|line| line.unended).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(hunks[0].lines[2].text, "b");
    }

    #[test]
    fn only_a_newline_added_at_the_end_is_a_change() {
        let hunks = parse("@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a");
        assert_eq!(shape(&hunks[0]), [(None, '-', "a"), (Some(1), '+', "a")]);
        assert!(hunks[0].lines[0].unended && !hunks[0].lines[1].unended);
    }

    #[test]
    fn lines_of_windows_lose_their_carriage_return() {
        let hunks = parse("@@ -1,2 +1,2 @@\n a\r\n-b\r\n+c\r\n");
        assert_eq!(shape(&hunks[0]), [(Some(1), ' ', "a"), (None, '-', "b"), (Some(2), '+', "c")]);
    }

    #[test]
    fn gits_own_lines_are_skipped() {
        let renamed = "diff --git \"a/\\303\\244.txt\" b/b.txt\nsimilarity index 90%\nrename from \u{e4}.txt\n\
                       rename to b.txt\nindex 1..2 100644\n--- \"a/\\303\\244.txt\"\n+++ b/b.txt\n\
                       @@ -1 +1 @@\n-\u{e4}\n+\u{f6}\n";
        assert_eq!(shape(&parse(renamed)[0]), [(None, '-', "\u{e4}"), (Some(1), '+', "\u{f6}")]);
        assert_eq!(parse("diff --git a/x b/x\nold mode 100644\nnew mode 100755\n"), []);
        assert_eq!(parse("diff --git a/x b/x\nBinary files a/x and b/x differ\n"), []);
        assert_eq!(parse("similarity index 100%\nrename from a\nrename to b\n"), []);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn lines_that_look_like_headers_are_lines() {
        let hunks = parse("@@ -1,2 +1,2 @@\n--- a\n+++ b\n @@ -1 +1 @@");
        assert_eq!(shape(&hunks[0]), [(None, '-', "-- a"), (Some(1), '+', "++ b"), (Some(2), ' ', "@@ -1 +1 @@")]);
    }

    #[test]
    fn a_deleted_file_has_no_new_lines() {
        let hunks = parse("@@ -1,2 +0,0 @@\n-a\n-b");
        assert_eq!(hunks[0].targets(), [] as [u64; 0]);
    }

    #[test]
    fn a_hunk_that_is_cut_off_has_what_is_there() {
        let hunks = parse("@@ -1,9 +1,9 @@\n a\n+b\n@@ -20 +21 @@\n-x\n+y");
        assert_eq!(hunks.iter().map(|hunk| hunk.lines.len()).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(parse("@@ -1,9 +1,9 @@\n a\n").iter().map(|hunk| hunk.lines.len()).sum::<usize>(), 1);
        assert_eq!(parse("@@ -1,9 +1,9 @@\n"), []);
        assert_eq!(parse("@@ -x,9 +1,9 @@\n a"), []);
        assert_eq!(parse("@@ -1,99999999999999999999 +1 @@\n a"), []);
    }

    #[test]
    fn pieces_of_a_hunk_keep_their_numbers() {
        let hunk = &parse("@@ -10,3 +20,4 @@ s\n a\n-b\n+B\n+C\n d")[0];
        let pieces = hunk.split(2);
        assert_eq!(pieces.iter().map(|piece| (piece.old_start, piece.new_start)).collect::<Vec<_>>(), [
            (10, 20),
            (12, 21),
            (12, 23)
        ]);
        let again: Vec<_> = pieces.iter().flat_map(shape).collect();
        assert_eq!(again, shape(hunk));
    }

    #[test]
    fn old_lines_are_found_again() {
        let hunks = parse("@@ -3,3 +3,4 @@\n c\n-d\n+D\n+E\n f\n@@ -10,0 +12,2 @@\n+x\n+y\n@@ -20,2 +23,0 @@\n-p\n-q");
        let wanted = [(1, 1), (2, 2), (3, 3), (5, 6), (6, 7), (10, 11), (11, 14), (19, 22), (22, 23), (30, 31)];
        for (old, new) in wanted {
            assert_eq!(shift(&hunks, old), Some(new), "line {old}");
        }
        for gone in [4, 20, 21] {
            assert_eq!(shift(&hunks, gone), None, "line {gone}");
        }
        assert_eq!(shift(&[], 5), Some(5));
    }
}
