// SPDX-License-Identifier: Apache-2.0
//! The one comment that the bot keeps on a pull request. Whatever a model or a diff says is text here: it can make
//! neither markup nor links nor mentions, and never begins a line.

use crate::findings::Finding;

/// GitHub's own limit, of characters by its word; bytes are counted here, and an end of a line as two, so that it holds
/// however GitHub counts.
pub const MAX_COMMENT: usize = 65_536;

const MARKER: &str = "<!-- faas-review-bot v1 head=";

/// Room for the notes about what was left out, and the end.
const RESERVE: usize = 1_000;

/// What a comment says.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The last commit whose review is complete; empty before the first.
    pub reviewed: String,
    /// What happens just now; empty when the review is complete.
    pub status: String,
    pub summary: String,
    pub risks: Vec<String>,
    pub fresh: Vec<Finding>,
    /// Reported by an earlier review, and still there.
    pub earlier: Vec<Finding>,
    /// How many more findings there were than are shown.
    pub more: usize,
    /// Files that were not reviewed, and why.
    pub skipped: Vec<(String, String)>,
    pub footer: Vec<String>,
}

/// The commit in a comment's marker, empty if there is none yet; `None` when it is no comment of the bot.
pub fn marked_head(body: &str) -> Option<&str> {
    let (head, _) = body.strip_prefix(MARKER)?.split_once(" -->")?;
    Some(if is_commit(head) { head } else { "" })
}

/// Whether a text is a commit's hash.
pub fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A commit's hash as people write it.
pub fn short(head: &str) -> &str {
    head.get(..7).unwrap_or(head)
}

/// The comment, of at most [`MAX_COMMENT`] bytes.
pub fn render(view: &View) -> String {
    let reviewed = if view.reviewed.is_empty() { "none" } else { &view.reviewed };
    let mut page = Page { text: format!("{MARKER}{reviewed} -->\n## Code review\n"), length: 0, full: false };
    page.length = units(&page.text);
    if !view.status.is_empty() {
        page.add(&format!("\n\u{23f3} {}\n", view.status));
    }
    if !view.summary.is_empty() {
        page.add(&format!("\n**Summary:** {}\n", escape(&view.summary)));
    }
    if !view.risks.is_empty() {
        page.add("\n**Risks**\n\n");
        for risk in &view.risks {
            page.add(&format!("* Risk: {}\n", escape(risk)));
        }
    }
    let left_out = sections(view, &mut page) + view.more;
    if left_out > 0 {
        page.note(&format!("\n_{} not shown._\n", plural(left_out, "more finding is", "more findings are")));
    }
    if !view.skipped.is_empty() {
        let unlisted = skipped(view, &mut page);
        if unlisted > 0 {
            let (one, many) = ("more file that was not reviewed is", "more files that were not reviewed are");
            page.note(&format!("\n_{} not listed._\n", plural(unlisted, one, many)));
        }
    }
    if page.full {
        page.note("\n_This comment is as long as GitHub allows._\n");
    }
    if !view.footer.is_empty() {
        page.note(&format!("\n---\n<sub>{}</sub>\n", view.footer.join(" \u{b7} ")));
    }
    page.text
}

/// The findings by file, the worst file first; returns how many had no room.
fn sections(view: &View, page: &mut Page) -> usize {
    let mut all: Vec<(&Finding, bool)> = view.fresh.iter().map(|finding| (finding, false)).collect();
    all.extend(view.earlier.iter().map(|finding| (finding, true)));
    let worst = |path: &str| all.iter().filter(|(one, _)| one.path == path).map(|(one, _)| one.severity).min();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|at| {
        let (finding, _) = all[*at];
        (worst(&finding.path), &finding.path, finding.severity, finding.line, &finding.title)
    });
    let (mut left_out, mut path) = (0, "");
    for (finding, known) in order.into_iter().map(|at| all[at]) {
        let mut text = String::new();
        if finding.path != path {
            text += &format!("\n### {}\n\n", code(&finding.path));
        }
        let known = if known { ", reported before" } else { "" };
        let line = if finding.line > 0 { format!(", line {}", finding.line) } else { String::new() };
        text += &format!("* **{}**{line}{known}: {}", finding.severity.name(), escape(&finding.title));
        if !finding.detail.is_empty() {
            text += &format!(" \u{2014} {}", escape(&finding.detail));
        }
        text.push('\n');
        if page.add(&text) {
            path = &finding.path;
        } else {
            left_out += 1;
        }
    }
    left_out
}

/// The files that were not reviewed; returns how many had no room.
fn skipped(view: &View, page: &mut Page) -> usize {
    let count = plural(view.skipped.len(), "file", "files");
    if !page.add(&format!("\n<details><summary>Not reviewed: {count}</summary>\n\n")) {
        return view.skipped.len();
    }
    let lines = view.skipped.iter().map(|(path, reason)| format!("* {}: {}\n", code(path), escape(reason)));
    let left_out = view.skipped.len() - lines.filter(|line| page.add(line)).count();
    page.note("\n</details>\n");
    left_out
}

/// `1 file`, `2 files`.
pub fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

struct Page {
    text: String,
    length: usize,
    full: bool,
}

impl Page {
    /// Adds a text if there is room for it; says whether there was.
    fn add(&mut self, text: &str) -> bool {
        let length = units(text);
        if self.length + length + RESERVE > MAX_COMMENT {
            self.full = true;
            return false;
        }
        self.text += text;
        self.length += length;
        true
    }

    /// Adds what has its room reserved.
    fn note(&mut self, text: &str) {
        if self.length + units(text) <= MAX_COMMENT {
            self.text += text;
            self.length += units(text);
        }
    }
}

/// As GitHub counts at most.
fn units(text: &str) -> usize {
    text.len() + text.matches('\n').count()
}

/// A path, or any text of one line, as code: neither markup nor links nor mentions are looked for in it.
pub fn code(text: &str) -> String {
    let shown = text.chars().filter(|c| !is_invisible(*c)).map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let shown: String = shown.collect();
    let (mut longest, mut run) = (0, 0);
    for c in shown.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let fence = "`".repeat(longest + 1);
    let edge = |c: char| c == '`' || c == ' ';
    if shown.is_empty() || shown.starts_with(edge) || shown.ends_with(edge) {
        format!("{fence} {shown} {fence}")
    } else {
        format!("{fence}{shown}{fence}")
    }
}

/// A text of others as one line that says what it says and does nothing: no markup, no HTML, no links, no images, no
/// mentions, no references.
pub fn escape(text: &str) -> String {
    let shown = text.chars().filter(|c| !is_invisible(*c)).map(|c| if c.is_control() { ' ' } else { c });
    let chars: Vec<char> = shown.collect();
    let mut out = String::with_capacity(text.len() + 16);
    let mut hex = 0;
    for (at, c) in chars.iter().copied().enumerate() {
        // GitHub links what may be a commit: a word of 7 to 40 hexadecimal digits.
        let is_hex = c.is_ascii_hexdigit();
        let in_word = at > 0 && chars[at - 1].is_alphanumeric();
        hex = if is_hex && (hex > 0 || !in_word) { hex + 1 } else { 0 };
        if hex == 7 {
            out.push(BREAK);
        }
        let next = chars.get(at + 1).copied().unwrap_or(' ');
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '~' | '|' | '$' => {
                out.push('\\');
                out.push(c);
            }
            // Mentions and addresses; issues; GH-1; http://, mailto:, and emoji; www.
            '@' | '#' | ':' => {
                out.push(c);
                if !next.is_whitespace() {
                    out.push(BREAK);
                }
            }
            '-' if next.is_ascii_digit() && in_word => {
                out.push(c);
                out.push(BREAK);
            }
            '.' if ends_with_www(&chars[..at]) => {
                out.push(BREAK);
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// Seen by no one, and keeps GitHub from making a link.
const BREAK: char = '\u{200b}';

fn ends_with_www(chars: &[char]) -> bool {
    chars.len() >= 3 && chars[chars.len() - 3..].iter().all(|c| matches!(c, 'w' | 'W'))
}

/// Characters that change how others are read, or that nobody sees.
pub fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Severity;

    fn finding(path: &str, line: u64, severity: Severity, title: &str, detail: &str) -> Finding {
        Finding { path: path.into(), line, severity, title: title.into(), detail: detail.into() }
    }

    #[test]
    fn a_comment_is_as_follows_byte_for_byte() {
        let view = View {
            reviewed: "0123456789abcdef0123456789abcdef01234567".into(),
            summary: "Adds a cache. It is never emptied.".into(),
            risks: vec!["Memory grows.".into()],
            fresh: vec![
                finding("src/b.py", 7, Severity::Medium, "Unused name", ""),
                finding("src/a.py", 12, Severity::High, "Grows without end", "Nothing removes an entry."),
            ],
            earlier: vec![finding("src/b.py", 3, Severity::Low, "Typo", "")],
            more: 2,
            skipped: vec![("img/x.png".into(), "binary".into())],
            footer: vec!["Reviewed `0123456`".into(), "1.5 s".into()],
            ..View::default()
        };
        assert_eq!(
            render(&view),
            "<!-- faas-review-bot v1 head=0123456789abcdef0123456789abcdef01234567 -->\n\
             ## Code review\n\
             \n\
             **Summary:** Adds a cache. It is never emptied.\n\
             \n\
             **Risks**\n\
             \n\
             * Risk: Memory grows.\n\
             \n\
             ### `src/a.py`\n\
             \n\
             * **high**, line 12: Grows without end \u{2014} Nothing removes an entry.\n\
             \n\
             ### `src/b.py`\n\
             \n\
             * **medium**, line 7: Unused name\n\
             * **low**, line 3, reported before: Typo\n\
             \n\
             _2 more findings are not shown._\n\
             \n\
             <details><summary>Not reviewed: 1 file</summary>\n\
             \n\
             * `img/x.png`: binary\n\
             \n\
             </details>\n\
             \n\
             ---\n\
             <sub>Reviewed `0123456` \u{b7} 1.5 s</sub>\n"
        );
    }

    #[test]
    fn a_placeholder_has_no_commit_yet() {
        let text = render(&View { status: "Reading `0123456`.".into(), ..View::default() });
        assert_eq!(
            text,
            "<!-- faas-review-bot v1 head=none -->\n## Code review\n\n\u{23f3} Reading `0123456`.\n"
        );
        assert_eq!(marked_head(&text), Some(""));
    }

    #[test]
    fn the_marker_is_read_where_it_was_written_only() {
        let text = render(&View { reviewed: "abcdef1".into(), ..View::default() });
        assert_eq!(marked_head(&text), Some("abcdef1"));
        assert_eq!(marked_head(&format!(" {text}")), None);
        assert_eq!(marked_head("<!-- faas-review-bot v1 head=x/../y -->"), Some(""));
        assert_eq!(marked_head("LGTM"), None);
    }

    #[test]
    fn text_of_others_does_nothing() {
        for (given, wanted) in [
            ("a_b *c* `d` [x](y) ~~z~~ | $1$", "a\\_b \\*c\\* \\`d\\` \\[x\\](y) \\~\\~z\\~\\~ \\| \\$1\\$"),
            ("<img src=x> --> & &lt;", "&lt;img src=x&gt; --&gt; &amp; &amp;lt;"),
            ("@ann and a@b.c, @ x", "@\u{200b}ann and a@\u{200b}b.c, @ x"),
            ("see #12, o/r#3, GH-4", "see #\u{200b}12, o/r#\u{200b}3, GH-\u{200b}4"),
            ("https://x.y www.x.y MAILTO:a", "https:\u{200b}//x.y www\u{200b}.x.y MAILTO:\u{200b}a"),
            ("commit deadbeef1 and abcdef", "commit deadbe\u{200b}ef1 and abcdef"),
            ("\\@x \\*", "\\\\@\u{200b}x \\\\\\*"),
            ("a\nb\r\n# c", "a b  # c"),
            ("\u{202e}evil\u{200b}\u{feff}", "evil"),
            ("![i](https://x)", "!\\[i\\](https:\u{200b}//x)"),
            ("@org/team ping", "@\u{200b}org/team ping"),
            ("a\u{200b}@\u{2060}ann #\u{fe0f}1", "a@\u{200b}ann #\u{200b}1"),
            ("w\u{ad}ww.x.y gh-4 o/r@abc", "www\u{200b}.x.y gh-\u{200b}4 o/r@\u{200b}abc"),
            ("<!-- faas-review-bot v1 head=none -->", "&lt;!-- faas-review-bot v1 head=none --&gt;"),
            ("```\n# x\n```", "\\`\\`\\` # x \\`\\`\\`"),
        ] {
            assert_eq!(escape(given), wanted, "{given}");
        }
    }

    #[test]
    fn code_can_not_be_left() {
        for (given, wanted) in [
            ("src/a.py", "`src/a.py`"),
            ("a`b", "``a`b``"),
            ("`a", "`` `a ``"),
            ("a``b` @x", "```a``b` @x```"),
            ("a\n\n# b", "`a\u{fffd}\u{fffd}# b`"),
            ("", "`  `"),
            ("\u{e4}/\u{4e2d}.txt", "`\u{e4}/\u{4e2d}.txt`"),
        ] {
            assert_eq!(code(given), wanted, "{given}");
        }
    }

    #[test]
    fn a_comment_is_never_longer_than_github_allows() {
        let detail = "\u{1f600}*".repeat(300);
        let view = View {
            summary: "s".into(),
            fresh: (0..200).map(|line| finding("a.py", line, Severity::Low, &detail, &detail)).collect(),
            skipped: (0..3000).map(|number| (format!("some/long/path/{number}.bin"), "binary".to_owned())).collect(),
            footer: vec!["the end".into()],
            ..View::default()
        };
        let text = render(&view);
        assert!(units(&text) <= MAX_COMMENT && units(&text) > MAX_COMMENT - 3 * RESERVE, "{}", units(&text));
        assert!(text.contains("more findings are not shown._"));
        assert!(text.contains("more files that were not reviewed are not listed._"));
        assert!(text.contains("as long as GitHub allows") && text.ends_with("<sub>the end</sub>\n"));
    }
}
