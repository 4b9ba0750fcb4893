// SPDX-License-Identifier: Apache-2.0
//! The tools that a model may ask for, each bounded: some lines of a file, a search, at the commit under review.

use crate::json_out::{elements, integer, string};
use crate::pack::{cut, visible};
use crate::skip::is_private_key;
use faas::json::Json;

/// Calls of one answer that are made; more are ignored.
const MAX_ASKS: usize = 2;
const MAX_LINES: u64 = 80;
const MAX_QUERY_CHARS: usize = 80;
/// What a tool that fails answers.
pub const NOT_AVAILABLE: &str = "not available";
const NOT_SHOWN: &str = "this file is not shown to a model";

/// What a model asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Read { path: String, from: u64, to: u64 },
    Search { query: String },
}

/// What an answer asks for, without what is none.
pub fn read(answer: &Json) -> Vec<Ask> {
    elements(answer, "ask").iter().filter_map(one).take(MAX_ASKS).collect()
}

fn one(of: &Json) -> Option<Ask> {
    match string(of, "tool") {
        "read_file" => {
            let path = string(of, "path").trim_start_matches("./").to_owned();
            let from = integer(of, "from").unwrap_or(1).clamp(1, 10_000_000);
            let to = integer(of, "to").unwrap_or(from + MAX_LINES - 1).clamp(from, from + MAX_LINES - 1);
            let inside = path.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
            (inside && path.len() <= 1000 && !path.chars().any(char::is_control)).then(|| Ask::Read { path, from, to })
        }
        "search" => {
            let query: String = string(of, "query").chars().filter(|c| !c.is_control()).take(MAX_QUERY_CHARS).collect();
            (!query.trim().is_empty()).then(|| Ask::Search { query: query.trim().to_owned() })
        }
        _ => None,
    }
}

impl Ask {
    /// The path of `github` that answers, under `/repos/OWNER/REPO`; `Err` says why not. `hidden` tells what no model
    /// may see.
    pub fn request(&self, head: &str, hidden: impl Fn(&str) -> bool) -> Result<String, String> {
        match self {
            Ask::Read { path, .. } if hidden(path) => Err(NOT_SHOWN.to_owned()),
            Ask::Read { path, .. } => Ok(format!("/contents/{}?ref={head}", encoded(path, true))),
            Ask::Search { query } => Ok(format!("/search?q={}&ref={head}", encoded(query, false))),
        }
    }

    /// How it is named to the model.
    pub fn title(&self) -> String {
        match self {
            Ask::Read { path, from, to } => format!("{}, lines {from} to {to}:", visible(path)),
            Ask::Search { query } => format!("search for {query:?}:"),
        }
    }

    /// An answer of `github` as text, of at most so many bytes.
    pub fn render(&self, answer: &Json, hidden: impl Fn(&str) -> bool, max_bytes: usize) -> String {
        let mut out = String::new();
        match self {
            Ask::Read { from, to, .. } => {
                let text = match answer.get("text").and_then(Json::text) {
                    Some(text) => text,
                    None => return "no text: it is binary, or too large".to_owned(),
                };
                if text.lines().any(is_private_key) {
                    return NOT_SHOWN.to_owned();
                }
                let lines = text.lines().enumerate().skip(*from as usize - 1).take((to - from + 1) as usize);
                lines.for_each(|(at, line)| out += &format!("{:>5}   {}\n", at + 1, cut(line)));
            }
            // "Nothing" would tell the model that it is used nowhere.
            Ask::Search { .. } if !string(answer, "unsupported").is_empty() => return NOT_AVAILABLE.to_owned(),
            Ask::Search { .. } => {
                for item in elements(answer, "items").iter().filter(|item| !hidden(string(item, "path"))) {
                    for line in elements(item, "lines").iter().take(5) {
                        let number = integer(line, "number").unwrap_or(0);
                        let (path, text) = (visible(string(item, "path")), cut(string(line, "text")));
                        out += &format!("{path}:{number}: {text}\n");
                    }
                }
            }
        }
        if out.is_empty() {
            return "nothing".to_owned();
        }
        if out.len() > max_bytes {
            let end = (0..=max_bytes).rev().find(|end| out.is_char_boundary(*end)).unwrap_or(0);
            out.truncate(end);
            out += "\u{2026}";
        }
        out
    }
}

/// Percent-encoded for a path, or for a value of a query.
pub fn encoded(text: &str, path: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') || (path && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_are_bounded_and_nonsense_is_none() {
        let answer = Json::parse(
            r#"{"ask":[{"tool":"rm","path":"x"},{"tool":"read_file","path":"../etc/passwd"},
                {"tool":"read_file","path":"/a"},{"tool":"read_file","path":"a\nDATA-1\nb"},
                {"tool":"read_file","path":"./a/b.py","from":5,"to":9000},{"tool":"search","query":" f(\n "},
                {"tool":"search","query":"third"}]}"#,
        )
        .unwrap();
        assert_eq!(read(&answer), [
            Ask::Read { path: "a/b.py".into(), from: 5, to: 84 },
            Ask::Search { query: "f(".into() }
        ]);
        assert_eq!(read(&Json::Null), []);
        let odd = Json::parse(r#"{"ask":[{"tool":"read_file","path":"a","from":-3,"to":-9}]}"#).unwrap();
        assert_eq!(read(&odd), [Ask::Read { path: "a".into(), from: 1, to: 80 }]);
    }

    #[test]
    fn requests_are_encoded_and_private_files_refused() {
        let hidden = |path: &str| path.ends_with(".env");
        let ask = |path: &str| Ask::Read { path: path.into(), from: 1, to: 2 };
        assert_eq!(ask("\u{e4} b/c?d#").request("abc", &hidden).unwrap(), "/contents/%C3%A4%20b/c%3Fd%23?ref=abc");
        assert!(ask("conf/.env").request("abc", &hidden).is_err());
        let search = Ask::Search { query: "a&b /c".into() };
        assert_eq!(search.request("abc", &hidden).unwrap(), "/search?q=a%26b%20%2Fc&ref=abc");
    }

    #[test]
    fn answers_are_text_with_numbers_and_cut() {
        let hidden = |path: &str| path == ".env";
        let read = Ask::Read { path: "a".into(), from: 2, to: 3 };
        let answer = Json::parse(r#"{"text":"a\nb\r\n\u00e4\u00e4\u00e4\nd"}"#).unwrap();
        assert_eq!(read.render(&answer, &hidden, 1000), "    2   b\n    3   \u{e4}\u{e4}\u{e4}\n");
        assert_eq!(read.render(&answer, &hidden, 19), "    2   b\n    3   \u{2026}");
        let odd = Json::parse(r#"{"text":"a\u202eb\rc"}"#).unwrap();
        let first = Ask::Read { path: "a".into(), from: 1, to: 3 };
        assert_eq!(first.render(&odd, &hidden, 1000), "    1   a<U+202E>b<U+000D>c\n");
        let key = Json::parse(r#"{"text":"a\n-----BEGIN PRIVATE KEY-----\nMII"}"#).unwrap();
        assert_eq!(first.render(&key, &hidden, 1000), NOT_SHOWN);
        let binary = Json::parse(r#"{"text":null}"#).unwrap();
        assert_eq!(read.render(&binary, &hidden, 9), "no text: it is binary, or too large");
        let search = Ask::Search { query: "x".into() };
        let answer = r#"{"items":[{"path":"p","lines":[{"number":3,"text":"x = 1"}]},
            {"path":".env","lines":[{"text":"S"}]}]}"#;
        assert_eq!(search.render(&Json::parse(answer).unwrap(), &hidden, 1000), "p:3: x = 1\n");
        assert_eq!(search.render(&Json::Null, &hidden, 1000), "nothing");
        let failed = Json::parse(r#"{"items":[],"unsupported":"GitHub: 403"}"#).unwrap();
        assert_eq!(search.render(&failed, &hidden, 1000), NOT_AVAILABLE);
    }
}
