// SPDX-License-Identifier: Apache-2.0
//! Percent-encoding (RFC 3986), base64 (RFC 4648), Link headers (RFC 8288).

/// `text` with everything but unreserved characters percent-encoded, slashes included.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// One segment of a path, decoded; `None` for a broken escape, or bytes that are no
/// UTF-8. `+` stands for itself.
pub fn decode(segment: &str) -> Option<String> {
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            out.push((digit(at + 1)? * 16 + digit(at + 2)?) as u8);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

/// What base64 text stands for, line breaks in it skipped; `None` when it is none.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count, mut padding) = (0u32, 0, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'\n' | b'\r' => continue,
            b'=' => {
                padding += 1;
                continue;
            }
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        bits = bits << 6 | u32::from(value);
        count += 1;
        if count % 4 == 0 {
            out.extend_from_slice(&bits.to_be_bytes()[1..]);
            bits = 0;
        }
    }
    match (count % 4, padding) {
        (0, 0) => {}
        (2, 2) => out.push((bits >> 4) as u8),
        (3, 1) => out.extend_from_slice(&[(bits >> 10) as u8, (bits >> 2) as u8]),
        _ => return None,
    }
    Some(out)
}

/// The number of the next page by a `Link` header, if there is one after `page`.
pub fn next_page(link: &str, page: u64) -> Option<u64> {
    let next = link.split(',').find(|part| part.split(';').skip(1).any(|rel| rel.trim() == "rel=\"next\""))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    let query = url.split_once('?')?.1.split('#').next()?;
    let number = query.split('&').find_map(|field| field.strip_prefix("page="))?.parse().ok()?;
    // A server that names the same page again would have its caller turn in circles.
    (number > page).then(|| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        for text in ["", "a-b_c.d~", "a b+c/d?e#f%", "Übung/日本.rs", "%2e%2e"] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
        }
        assert_eq!(encode("a b/Ü+%"), "a%20b%2F%C3%9C%2B%25");
    }

    #[test]
    fn broken_escapes_and_bytes_that_are_no_text_are_refused() {
        for segment in ["%", "%4", "%zz", "%+1", "%ff", "a%C3"] {
            assert_eq!(decode(segment), None, "{segment}");
        }
        assert_eq!(decode("a+b").as_deref(), Some("a+b"));
    }

    #[test]
    fn base64_as_rfc_4648_has_it() {
        for (text, bytes) in [
            ("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9v\nYmE=\n", "fooba"), ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
        for text in ["Z", "Zg", "Zg=", "Zm9", "Zg==Zg==", "Zm8==", "Zm9v=", "Zm9v!"] {
            assert_eq!(base64(text), None, "{text}");
        }
    }

    #[test]
    fn the_next_page_is_the_one_that_link_names() {
        let link = "<https://api.github.com/x?per_page=100&page=1>; rel=\"prev\", \
                    <https://api.github.com/x?per_page=100&page=3>; rel=\"next\", \
                    <https://api.github.com/x?per_page=100&page=9>; rel=\"last\"";
        assert_eq!(next_page(link, 2), Some(3));
        assert_eq!(next_page(link, 3), None);
        assert_eq!(next_page("<https://a/x?page=1>; rel=\"first\"", 2), None);
        for broken in ["", "next", "<x>; rel=\"next\"", "<x?page=y>; rel=\"next\"", "x?page=3; rel=\"next\""] {
            assert_eq!(next_page(broken, 1), None, "{broken}");
        }
    }
}
