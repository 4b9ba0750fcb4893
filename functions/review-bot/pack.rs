// SPDX-License-Identifier: Apache-2.0
//! Hunks as text for a model, and packed into parts of a token budget.

use crate::comment::is_invisible;
use crate::diff::{Hunk, Kind};

/// A line that is longer is cut: nobody reviews data.
const MAX_LINE_CHARS: usize = 400;

/// A hunk of a file that is to be reviewed, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the file.
    pub file: usize,
    pub hunk: Hunk,
    pub tokens: u64,
    /// What the line costs that names its file.
    pub title_tokens: u64,
}

/// What one call reviews.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub pieces: Vec<Piece>,
    pub tokens: u64,
}

/// The hunk with the numbers of its new lines.
pub fn render(hunk: &Hunk) -> String {
    let mut out = format!("@@ line {} @@ {}\n", hunk.new_start, cut(&hunk.section));
    for (number, line) in hunk.numbered() {
        let (number, mark) = match (number, line.kind) {
            (Some(number), Kind::Added) => (number.to_string(), '+'),
            (Some(number), _) => (number.to_string(), ' '),
            (None, _) => (String::new(), '-'),
        };
        out += &format!("{number:>5} {mark} {}\n", cut(&line.text));
        if line.unended {
            out += "        (no newline at end of file)\n";
        }
    }
    out
}

/// A text as it is, but for characters that nobody sees or that change how others are read: those are named, so that
/// the model reads what a person would not, and can say so.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) || matches!(c, '\n' | '\r') {
            out += &format!("<U+{:04X}>", c as u32);
        } else {
            out.push(if c.is_control() && c != '\t' { ' ' } else { c });
        }
    }
    out
}

/// One line, made visible, of a bounded length.
pub fn cut(text: &str) -> String {
    let text = visible(text);
    match text.char_indices().nth(MAX_LINE_CHARS) {
        Some((end, _)) => format!("{} (cut)", &text[..end]),
        None => text,
    }
}

/// How many lines the pieces of a hunk may have so that each is likely within the budget; `None` when it is one line.
pub fn lines_within(hunk: &Hunk, tokens: u64, budget: u64) -> Option<usize> {
    if hunk.lines.len() < 2 {
        return None;
    }
    // Lines are not alike: four fifths of the budget, and at least two pieces.
    let lines = hunk.lines.len() as u64 * budget * 4 / (tokens.max(1) * 5);
    Some((lines as usize).clamp(1, (hunk.lines.len() + 1) / 2))
}

/// Packs pieces in their order: a part ends where the next piece would be over the budget. A file is named once in each
/// part that has pieces of it.
pub fn pack(pieces: Vec<Piece>, budget: u64) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for piece in pieces {
        let named = |part: &Part| part.pieces.last().map_or(false, |last| last.file == piece.file);
        let cost = |part: &Part| piece.tokens + if named(part) { 0 } else { piece.title_tokens };
        match parts.last_mut() {
            Some(part) if part.tokens + cost(part) <= budget => {
                part.tokens += cost(part);
                part.pieces.push(piece);
            }
            _ => parts.push(Part { tokens: piece.tokens + piece.title_tokens, pieces: vec![piece] }),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::parse;

    fn piece(file: usize, tokens: u64) -> Piece {
        Piece { file, hunk: parse("@@ -1 +1 @@\n-a\n+b").remove(0), tokens, title_tokens: 5 }
    }

    #[test]
    fn lines_have_the_numbers_that_findings_name() {
        let hunk = &parse("@@ -9,2 +9,2 @@ fn f()\n a\n-b\n+\tB\u{1b}[1m\n\\ No newline at end of file")[0];
        assert_eq!(
            render(hunk),
            "@@ line 9 @@ fn f()\n    9   a\n      - b\n   10 + \tB [1m\n        (no newline at end of file)\n"
        );
        let long = &parse(&format!("@@ -0,0 +1 @@\n+{}", "\u{e4}".repeat(500)))[0];
        assert!(render(long).ends_with("\u{e4} (cut)\n"));
    }

    #[test]
    fn what_nobody_sees_is_shown_to_the_model_by_name() {
        assert_eq!(visible("a\u{202e}b\u{200b}\u{e0041}c\td\u{7}"), "a<U+202E>b<U+200B><U+E0041>c\td ");
        assert_eq!(visible("a\nb \u{e4}\u{1f600}"), "a<U+000A>b \u{e4}\u{1f600}");
    }

    #[test]
    fn parts_keep_the_order_and_the_budget() {
        let parts = pack(vec![piece(0, 40), piece(0, 50), piece(1, 1), piece(1, 20), piece(2, 300), piece(3, 1)], 100);
        let shape: Vec<(u64, Vec<usize>)> =
            parts.iter().map(|part| (part.tokens, part.pieces.iter().map(|piece| piece.file).collect())).collect();
        assert_eq!(shape, [(95, vec![0, 0]), (26, vec![1, 1]), (305, vec![2]), (6, vec![3])]);
        assert_eq!(pack(vec![], 100), []);
    }

    #[test]
    fn a_hunk_is_split_until_it_can_not_be() {
        let text: String = (0..100).map(|number| format!("+{number}\n")).collect();
        let hunk = &parse(&format!("@@ -0,0 +1,100 @@\n{text}"))[0];
        assert_eq!(lines_within(hunk, 1000, 250), Some(20));
        assert_eq!(lines_within(hunk, 251, 250), Some(50));
        assert_eq!(lines_within(&hunk.split(1)[0], 1000, 250), None);
        assert_eq!(lines_within(&hunk.split(2)[0], 1_000_000, 1), Some(1));
    }
}
