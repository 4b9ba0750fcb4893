// SPDX-License-Identifier: Apache-2.0
//! Reading JSON (RFC 8259), for functions whose requests are JSON. Writing needs
//! no more than [`crate::json_string`].

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// null
    Null,
    /// true or false
    Bool(bool),
    /// A number; integers are exact up to 2^53.
    Number(f64),
    /// A string
    Text(String),
    /// An array
    Array(Vec<Json>),
    /// An object, in order; a name may occur more than once.
    Object(Vec<(String, Json)>),
}

/// Deeper nesting is refused: reading recurses, and the stack is small.
const MAX_DEPTH: usize = 64;

impl Json {
    /// Reads one value; `None` when `text` is not exactly that, or is nested more
    /// than 64 levels deep.
    pub fn parse(text: &str) -> Option<Json> {
        let mut reader = Reader { text: text.as_bytes(), at: 0 };
        let value = reader.value(0)?;
        reader.space();
        if reader.at == reader.text.len() {
            Some(value)
        } else {
            None
        }
    }

    /// The last member of that name, when this is an object.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => {
                members.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The text, when this is a string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, when this is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Json::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The elements, when this is an array.
    pub fn array(&self) -> Option<&[Json]> {
        match self {
            Json::Array(elements) => Some(elements),
            _ => None,
        }
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte that is not white space, which is consumed.
    fn token(&mut self) -> Option<u8> {
        self.space();
        let byte = *self.text.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.text.get(self.at).copied()
    }

    fn word(&mut self, rest: &[u8], value: Json) -> Option<Json> {
        if self.text[self.at..].starts_with(rest) {
            self.at += rest.len();
            Some(value)
        } else {
            None
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.token()? {
            b'n' => self.word(b"ull", Json::Null),
            b't' => self.word(b"rue", Json::Bool(true)),
            b'f' => self.word(b"alse", Json::Bool(false)),
            b'"' => self.string().map(Json::Text),
            b'[' => self.array(depth),
            b'{' => self.object(depth),
            b'-' | b'0'..=b'9' => self.number(),
            _ => None,
        }
    }

    fn array(&mut self, depth: usize) -> Option<Json> {
        let mut elements = Vec::new();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(Json::Array(elements));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            match self.token()? {
                b',' => continue,
                b']' => return Some(Json::Array(elements)),
                _ => return None,
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        let mut members = Vec::new();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(Json::Object(members));
        }
        loop {
            if self.token()? != b'"' {
                return None;
            }
            let name = self.string()?;
            if self.token()? != b':' {
                return None;
            }
            members.push((name, self.value(depth + 1)?));
            match self.token()? {
                b',' => continue,
                b'}' => return Some(Json::Object(members)),
                _ => return None,
            }
        }
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while matches!(self.text.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at > start {
            Some(())
        } else {
            None
        }
    }

    /// The rest of a number whose first byte was consumed.
    fn number(&mut self) -> Option<Json> {
        self.at -= 1;
        let start = self.at;
        if self.text[self.at] == b'-' {
            self.at += 1;
        }
        if self.text.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        std::str::from_utf8(&self.text[start..self.at]).ok()?.parse().ok().map(Json::Number)
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = std::str::from_utf8(self.text.get(self.at..self.at + 4)?).ok()?;
        self.at += 4;
        if digits.starts_with('+') {
            return None;
        }
        u32::from_str_radix(digits, 16).ok()
    }

    /// The rest of a string whose quote was consumed. Half of a surrogate pair
    /// becomes U+FFFD.
    fn string(&mut self) -> Option<String> {
        let mut out = Vec::new();
        loop {
            let byte = *self.text.get(self.at)?;
            self.at += 1;
            match byte {
                b'"' => return String::from_utf8(out).ok(),
                b'\\' => {
                    let escape = *self.text.get(self.at)?;
                    self.at += 1;
                    let c = match escape {
                        b'"' | b'\\' | b'/' => char::from(escape),
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'u' => self.unicode()?,
                        _ => return None,
                    };
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                0..=0x1f => return None,
                byte => out.push(byte),
            }
        }
    }

    fn unicode(&mut self) -> Option<char> {
        let mut code = self.hex4()?;
        if (0xd800..0xdc00).contains(&code) && self.text[self.at..].starts_with(b"\\u") {
            let before = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            } else {
                self.at = before;
            }
        }
        Some(char::from_u32(code).unwrap_or('\u{fffd}'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_value() {
        let text = r#" {"a": [1, -2.5e1, 0, "x\n\u00e4\ud83d\ude00\ud800"], "b": {}, "c": null, "d": true,
            "e": [], "a2": false} "#;
        let json = Json::parse(text).unwrap();
        let a = json.get("a").unwrap().array().unwrap();
        assert_eq!(a[0].number(), Some(1.0));
        assert_eq!(a[1].number(), Some(-25.0));
        assert_eq!(a[3].text(), Some("x\n\u{e4}\u{1f600}\u{fffd}"));
        assert_eq!(json.get("b"), Some(&Json::Object(Vec::new())));
        assert_eq!(json.get("c"), Some(&Json::Null));
        assert_eq!(json.get("d"), Some(&Json::Bool(true)));
        assert_eq!(json.get("z"), None);
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in [
            "", "nul", "01", "1.", "1e", "-", "[1,]", "[1", "{\"a\"}", "{a:1}", "\"", "\"\\x\"", "\"\n\"",
            "\"\\u12\"", "\"\\u+123\"", "1 2", "{\"a\":1,}", "+1",
        ] {
            assert_eq!(Json::parse(text), None, "{text}");
        }
        assert_eq!(Json::parse(&"[".repeat(100_000)), None);
        let deep = "[".repeat(60) + &"]".repeat(60);
        assert!(Json::parse(&deep).is_some());
    }

    #[test]
    fn every_truncation_is_refused() {
        let text = r#"{"a":["b\u00e4",{"c":-1.5e+3}]}"#;
        for end in 0..text.len() {
            assert_eq!(Json::parse(&text[..end]), None, "{}", &text[..end]);
        }
    }
}
