// SPDX-License-Identifier: Apache-2.0
//! Writing JSON: the values of the SDK's reader, made short and turned into text.

use faas::json::Json;
use faas::json_string;

/// An object.
pub fn object(members: Vec<(&str, Json)>) -> Json {
    Json::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A string.
pub fn text(value: impl Into<String>) -> Json {
    Json::Text(value.into())
}

/// An integer; exact up to 2^53, as JSON is.
pub fn number(value: u64) -> Json {
    Json::Number(value as f64)
}

/// The integer that a member of an object is; `None` for anything else, negative ones too.
pub fn integer(of: &Json, name: &str) -> Option<u64> {
    let value = of.get(name)?.number()?;
    if value.fract() == 0.0 && (0.0..9_007_199_254_740_993.0).contains(&value) {
        Some(value as u64)
    } else {
        None
    }
}

/// The text that a member of an object is; empty for anything else.
pub fn string<'a>(of: &'a Json, name: &str) -> &'a str {
    of.get(name).and_then(Json::text).unwrap_or("")
}

/// The elements that a member of an object has; none for anything else.
pub fn elements<'a>(of: &'a Json, name: &str) -> &'a [Json] {
    of.get(name).and_then(Json::array).unwrap_or(&[])
}

/// The text of a value, without white space.
pub fn write(value: &Json) -> String {
    let mut out = String::new();
    append(value, &mut out);
    out
}

fn append(value: &Json, out: &mut String) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
        Json::Number(number) => out.push_str(&number.to_string()),
        Json::Text(text) => out.push_str(&json_string(text)),
        Json::Array(elements) => {
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                append(element, out);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (at, (name, member)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push_str(&json_string(name));
                out.push(':');
                append(member, out);
            }
            out.push('}');
        }
    }
}

/// Reads what a model wrote: a value, perhaps with text around it, perhaps cut off in the middle, in which case what
/// is open is closed and a member that has no value yet is dropped.
pub fn salvage(answer: &str) -> Option<Json> {
    let begin = answer.find('{')?;
    let answer = answer[begin..].trim_end();
    if let Some(value) = Json::parse(answer) {
        return Some(value);
    }
    let (mut open, mut quoted, mut escaped) = (Vec::new(), false, false);
    // Where what was read so far can be closed, and with what.
    let mut ends: Vec<(usize, Vec<char>)> = Vec::new();
    for (at, c) in answer.char_indices() {
        if quoted {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    quoted = false;
                    ends.push((at + 1, open.clone()));
                }
                _ => {}
            }
            continue;
        }
        match c {
            '"' => quoted = true,
            '{' => open.push('}'),
            '[' => open.push(']'),
            '}' | ']' => {
                if open.pop() != Some(c) {
                    return None;
                }
                if open.is_empty() {
                    return Json::parse(&answer[..=at]);
                }
            }
            _ => continue,
        }
        if !quoted {
            ends.push((at + 1, open.clone()));
        }
    }
    if quoted {
        let whole = answer.len() - usize::from(escaped);
        let mut rest = answer[..whole].to_owned();
        rest.push('"');
        if let Some(value) = closed(&rest, &open) {
            return Some(value);
        }
    }
    // A few steps back are enough; more would be quadratic in what an answer can hold.
    ends.iter().rev().take(12).find_map(|(end, open)| closed(&answer[..*end], open))
}

fn closed(text: &str, open: &[char]) -> Option<Json> {
    let mut text = text.to_owned();
    text.extend(open.iter().rev());
    Json::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_reader_reads() {
        let value = object(vec![
            ("a", Json::Array(vec![number(1), text("x\"\n\u{e4}"), Json::Null, Json::Bool(true)])),
            ("b", object(vec![])),
        ]);
        assert_eq!(write(&value), "{\"a\":[1,\"x\\\"\\u000a\u{e4}\",null,true],\"b\":{}}");
        assert_eq!(Json::parse(&write(&value)), Some(value));
    }

    #[test]
    fn integers_are_whole_and_not_negative() {
        let value = Json::parse(r#"{"a":7,"b":-1,"c":1.5,"d":"7","e":1e300}"#).unwrap();
        assert_eq!(integer(&value, "a"), Some(7));
        for name in ["b", "c", "d", "e", "f"] {
            assert_eq!(integer(&value, name), None, "{name}");
        }
    }

    #[test]
    fn answers_with_text_around_them_are_read() {
        let value = salvage("Sure!\n```json\n{\"a\": [1]}\n```\nDone {").unwrap();
        assert_eq!(elements(&value, "a").len(), 1);
        assert_eq!(salvage("no json at all"), None);
        assert_eq!(salvage("{]"), None);
    }

    #[test]
    fn an_answer_that_is_cut_off_keeps_what_is_whole() {
        let answer = r#"{"findings":[{"path":"a","line":1},{"path":"b \" c","line":22}],"ask":[]}"#;
        for end in 1..=answer.len() {
            let value = salvage(&answer[..end]).unwrap_or_else(|| panic!("{}", &answer[..end]));
            assert!(matches!(value, Json::Object(_)));
        }
        let cut = salvage(r#"{"findings":[{"path":"a","line":1},{"path":"b","title":"it bre"#).unwrap();
        assert_eq!(string(&elements(&cut, "findings")[1], "title"), "it bre");
        let cut = salvage(r#"{"findings":[{"path":"a","line":1},{"path":"b","title":"it \"#).unwrap();
        assert_eq!(string(&elements(&cut, "findings")[1], "title"), "it ");
        let cut = salvage(r#"{"findings":[{"path":"a","line":1},{"path":"#).unwrap();
        assert_eq!(integer(&elements(&cut, "findings")[0], "line"), Some(1));
    }
}
