// SPDX-License-Identifier: Apache-2.0
//! Percent-encoding (RFC 3986), base64 (RFC 4648), Link headers (RFC 8288), SHA-1 (RFC 3174).

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

/// The name by which git knows a file of that content, in hexadecimal digits.
pub fn blob_sha(content: &[u8]) -> String {
    let mut blob = format!("blob {}\0", content.len()).into_bytes();
    blob.extend_from_slice(content);
    sha1(blob)
}

/// SHA-1 in hexadecimal digits: the name of a thing in git, no protection.
fn sha1(mut bytes: Vec<u8>) -> String {
    let n_bits = bytes.len() as u64 * 8;
    bytes.push(0x80);
    bytes.resize((bytes.len() + 8 + 63) / 64 * 64 - 8, 0);
    bytes.extend_from_slice(&n_bits.to_be_bytes());
    let mut state = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut words = [0u32; 80];
    for block in bytes.chunks_exact(64) {
        for (word, four) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([four[0], four[1], four[2], four[3]]);
        }
        for at in 16..80 {
            words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.iter().enumerate() {
            let (mixed, constant) = match at / 20 {
                0 => (b & c | !b & d, 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next =
                a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, more) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(more);
        }
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

/// Base64 text, for documents as GitHub sends them.
#[cfg(test)]
pub fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32, at: usize| char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]);
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        out.extend((0..4).map(|at| if at <= three.len() { digit(bits, at) } else { '=' }));
    }
    out
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
    fn sha1_as_fips_180_has_it() {
        for (text, sha) in [
            ("", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "84983e441c3bd26ebaae4aa1f95129e5e54670f1"),
            (
                "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn\
                 hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
                "a49b2446a02c645bf419f995b67091253a04a259",
            ),
            (&"a".repeat(1_000_000), "34aa973cd4c4daa4f61eeb2bdbad27316534016f"),
        ] {
            assert_eq!(sha1(text.as_bytes().to_vec()), sha, "{} bytes", text.len());
        }
        // Around the ends of blocks, by another implementation.
        for (length, sha) in [
            (55, "c1c8bbdc22796e28c0e15163d20899b65621d65a"), (56, "c2db330f6083854c99d4b5bfb6e8f29f201be699"),
            (63, "03f09f5b158a7a8cdad920bddc29b81c18a551f5"), (64, "0098ba824b5c16427bd7a1122a5a442a25ec644d"),
            (65, "11655326c708d70319be2610e8a57d9a5b959d3b"),
        ] {
            assert_eq!(sha1(vec![b'a'; length]), sha, "{length} bytes");
        }
    }

    #[test]
    fn blobs_have_the_names_that_git_gives_them() {
        assert_eq!(blob_sha(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(blob_sha(b"a-file-with-content"), "dbb84a81d2b1b5eb4077c9b72b7497eb16ed9bf6");
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
