// SPDX-License-Identifier: Apache-2.0
//! What the model found: checked, bounded, told from what is known already.

use crate::json_out::{elements, integer, number, object, string, text};
use faas::json::Json;
use std::collections::BTreeSet;

/// From the worst to the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Critical,
    High,
    Medium,
    Low,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::High => "high",
            Severity::Medium => "medium",
            Severity::Low => "low",
        }
    }

    fn of(name: &str) -> Option<Severity> {
        let all = [Severity::Critical, Severity::High, Severity::Medium, Severity::Low];
        all.iter().copied().find(|severity| severity.name() == name)
    }
}

/// One thing to look at, on a line of the new version; line 0 where nobody can tell it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub path: String,
    pub line: u64,
    pub severity: Severity,
    pub title: String,
    pub detail: String,
}

const MAX_LISTED: usize = 16;
const MAX_TITLE: usize = 160;
const MAX_DETAIL: usize = 600;

/// Two lines further away than this are not the same place.
const NEAR_LINES: u64 = 5;

impl Finding {
    /// Reads one; `None` unless every member is there and of its kind. Texts are bounded.
    pub fn read(of: &Json) -> Option<Finding> {
        let title = bounded(string(of, "title"), MAX_TITLE);
        if title.is_empty() {
            return None;
        }
        Some(Finding {
            path: string(of, "path").to_owned(),
            line: integer(of, "line")?,
            severity: Severity::of(string(of, "severity"))?,
            title,
            detail: bounded(string(of, "detail"), MAX_DETAIL),
        })
    }

    pub fn json(&self) -> Json {
        object(vec![
            ("path", text(&self.path)),
            ("line", number(self.line)),
            ("severity", text(self.severity.name())),
            ("title", text(&self.title)),
            ("detail", text(&self.detail)),
        ])
    }

    /// Whether both say the same about the same place: most of their words nearby, since a model rarely words a thing
    /// twice alike. The same words further away are another finding: one mistake can be made twice.
    pub fn is_same(&self, other: &Finding) -> bool {
        self.path == other.path && self.is_near(other) && self.shares(other, 6)
    }

    /// The same where a line may have moved to anywhere in its file.
    pub fn is_like(&self, other: &Finding) -> bool {
        self.path == other.path && self.shares(other, if self.is_near(other) { 6 } else { 9 })
    }

    /// Whether their lines are nearly the same, or one of them is not known.
    fn is_near(&self, other: &Finding) -> bool {
        let apart = self.line.max(other.line) - self.line.min(other.line);
        self.line == 0 || other.line == 0 || apart <= NEAR_LINES
    }

    /// Whether so many tenths of the titles' words are in both.
    fn shares(&self, other: &Finding, tenths: usize) -> bool {
        let (own, others) = (words(&self.title), words(&other.title));
        10 * own.intersection(&others).count() >= tenths * own.union(&others).count()
    }
}

/// The findings of a list that pass `allowed`, and how many did not.
pub fn read_list(of: &Json, name: &str, allowed: impl Fn(&Finding) -> bool) -> (Vec<Finding>, usize) {
    // A schema admits eight; a model that does not follow it can't crowd out the rest either.
    let listed = &elements(of, name)[..elements(of, name).len().min(MAX_LISTED)];
    let found: Vec<Finding> = listed.iter().filter_map(Finding::read).filter(|finding| allowed(finding)).collect();
    let dropped = listed.len() - found.len();
    (found, dropped)
}

/// New findings by severity, without those that say the same as another one.
pub fn merge(mut found: Vec<Finding>) -> Vec<Finding> {
    sort(&mut found);
    let mut kept: Vec<Finding> = Vec::new();
    for finding in found {
        if !kept.iter().any(|other| other.is_same(&finding)) {
            kept.push(finding);
        }
    }
    kept
}

/// By severity, then by place.
pub fn sort(found: &mut [Finding]) {
    found.sort_by(|a, b| (a.severity, &a.path, a.line, &a.title).cmp(&(b.severity, &b.path, b.line, &b.title)));
}

/// Lower-case words; numbers are none, since lines and sizes change.
fn words(text: &str) -> BTreeSet<String> {
    let split = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    split.map(str::to_lowercase).filter(|word| !word.chars().all(char::is_numeric)).collect()
}

/// One line of at most so many characters.
pub fn bounded(text: &str, max_chars: usize) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(max_chars) {
        None => line,
        Some((end, _)) => {
            let cut = line[..end].rfind(' ').filter(|at| *at > end / 2).unwrap_or(end);
            format!("{}\u{2026}", &line[..cut])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn finding(path: &str, line: u64, severity: Severity, title: &str) -> Finding {
        Finding { path: path.into(), line, severity, title: title.into(), detail: String::new() }
    }

    #[test]
    fn findings_are_checked_and_bounded() {
        let answer = Json::parse(
            r#"{"findings":[
                {"path":"a","line":3,"severity":"high","title":" It \n breaks ","detail":"d"},
                {"path":"a","line":4,"severity":"huge","title":"t","detail":"d"},
                {"path":"a","line":-4,"severity":"low","title":"t","detail":"d"},
                {"path":"a","line":4,"severity":"low","title":"  ","detail":"d"},
                {"path":"b","line":4,"severity":"low","title":"t"},
                {"path":"../x","line":4,"severity":"low","title":"t"},
                "nonsense"
            ]}"#,
        )
        .unwrap();
        let (found, dropped) = read_list(&answer, "findings", |finding| finding.path.len() == 1);
        assert_eq!((found.len(), dropped), (2, 5));
        assert_eq!(found[0].title, "It breaks");
        assert_eq!(Finding::read(&found[0].json()), Some(found[0].clone()));
        assert_eq!(read_list(&Json::Null, "findings", |_| true), (vec![], 0));
    }

    #[test]
    fn long_texts_end_at_a_word() {
        assert_eq!(bounded("one two three", 9), "one two\u{2026}");
        assert_eq!(bounded(&"\u{e4}".repeat(9), 4), "\u{e4}".repeat(4) + "\u{2026}");
        assert_eq!(bounded(" a\u{0}\r\n b ", 9), "a b");
    }

    #[test]
    fn the_same_thing_is_said_once() {
        let found = merge(vec![
            finding("b", 9, Severity::Low, "Unused variable x"),
            finding("a", 10, Severity::Medium, "Division by zero when count is 0"),
            finding("a", 12, Severity::High, "division by zero when `count` is 12!"),
            finding("a", 900, Severity::High, "Division by zero possible"),
            finding("c", 10, Severity::Low, "Unused variable x"),
        ]);
        let shape: Vec<(&str, u64)> = found.iter().map(|one| (one.path.as_str(), one.line)).collect();
        assert_eq!(shape, [("a", 12), ("a", 900), ("b", 9), ("c", 10)]);
    }

    #[test]
    fn other_words_elsewhere_are_another_thing() {
        let one = finding("a", 10, Severity::Low, "missing check of the return value");
        assert!(one.is_like(&finding("a", 12, Severity::High, "missing check of return value")));
        assert!(!one.is_like(&finding("a", 99, Severity::High, "no check of return value")));
        assert!(!one.is_like(&finding("b", 10, Severity::Low, "missing check of the return value")));
        let again = finding("a", 500, Severity::Low, "Missing check of the return value");
        assert!(one.is_like(&again) && !one.is_same(&again));
        assert!(one.is_same(&Finding { line: 0, ..again }));
    }
}
