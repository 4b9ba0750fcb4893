// SPDX-License-Identifier: Apache-2.0
//! The documents in pieces: those of the bundle, and those that were put.
//!
//! `text:NAME` is a document that was put, as a whole: replaced and deleted in one step.
//! `vectors:PIECES:MAKER` are the embeddings of pieces in a row, by hashes of their texts
//! and of what made them. So versions of the function with other documents write nothing
//! that another one would write otherwise, and what nobody asks for is gone after a week.

use crate::{embed, Refusal, EMBEDDED_AT_ONCE};
use faas::json_string;
use faas::msgpack::{DecodeError, Reader, Value, Writer};
use faas::v1::{Error, Store};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const MAX_PIECE_BYTES: usize = 900;
const PAGE: u32 = 500;
const DAY_MS: u64 = 24 * 3_600_000;
/// How long vectors are kept that no question needs.
const UNUSED_MS: u64 = 7 * DAY_MS;

/// A piece of a document, at its lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub document: String,
    pub from: u64,
    pub to: u64,
    pub text: String,
    /// Empty where nothing made one.
    pub vector: Vec<f32>,
}

fn encode_vectors(written_ms: u64, vectors: &[Vec<f32>]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.array(vectors.len() + 1);
    writer.uint(written_ms);
    for vector in vectors {
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.bin(&bytes);
    }
    writer.into_bytes()
}

fn decode_vectors(bytes: &[u8]) -> Result<(u64, Vec<Vec<f32>>), DecodeError> {
    let mut reader = Reader::new(bytes);
    let count = match reader.value()? {
        Value::Array(count) => count,
        _ => return Err(DecodeError::WrongType),
    };
    let (written_ms, mut vectors) = (reader.uint()?, Vec::new());
    for _ in 1..count {
        let fours = reader.bytes()?.chunks_exact(4);
        vectors.push(fours.map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect());
    }
    Ok((written_ms, vectors))
}

/// FNV-1a: tells texts apart, and guards nothing.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A document in pieces of whole paragraphs, or of whole lines where those are long.
pub fn pieces_of(document: &str, text: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open: Option<Piece> = None;
    let mut after_blank = true;
    for (line, number) in text.lines().zip(1_u64..) {
        let blank = line.trim().is_empty();
        let heading = after_blank && line.starts_with('#');
        for part in cut(line) {
            let full = open.as_ref().map_or(false, |piece| {
                let size = piece.text.len() + part.len() + 1;
                // A heading begins a new piece unless the one before is small.
                size > MAX_PIECE_BYTES || heading && piece.text.len() > MAX_PIECE_BYTES / 3
            });
            if full {
                pieces.extend(open.take());
            }
            match &mut open {
                Some(piece) => {
                    piece.text.push('\n');
                    piece.text.push_str(part);
                    piece.to = if blank { piece.to } else { number };
                }
                None if blank => {}
                None => {
                    let (document, text) = (document.to_owned(), part.to_owned());
                    open = Some(Piece { document, from: number, to: number, text, vector: Vec::new() });
                }
            }
        }
        after_blank = blank;
    }
    pieces.extend(open);
    for piece in &mut pieces {
        piece.text.truncate(piece.text.trim_end().len());
    }
    // What is cut out of a line may be nothing but spaces.
    pieces.retain(|piece| !piece.text.is_empty());
    pieces
}

/// A line in parts that fit, at the boundaries of its characters.
fn cut(line: &str) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), line);
    while rest.len() > MAX_PIECE_BYTES {
        let mut end = MAX_PIECE_BYTES;
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let end = rest[..end].rfind(' ').filter(|at| *at > 0).unwrap_or(end);
        parts.push(&rest[..end]);
        rest = &rest[end..];
    }
    parts.push(rest);
    parts
}

pub fn texts(pieces: &[Piece]) -> Vec<&str> {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

/// The text files of the bundle, by their paths.
fn bundle() -> Vec<(String, String)> {
    let (mut files, mut folders) = (Vec::new(), vec![(Path::new("/").to_owned(), String::new())]);
    while let Some((folder, prefix)) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push((entry.path(), format!("{name}/"))),
                Ok(_) if !name.contains(':') => {
                    files.extend(std::fs::read_to_string(entry.path()).ok().map(|text| (name, text)));
                }
                _ => {}
            }
        }
    }
    files.sort();
    files
}

pub struct Index {
    store: Store,
}

impl Index {
    pub fn open() -> Result<Index, Refusal> {
        Ok(Index { store: Store::open("default")? })
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, Refusal> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let (keys, next) = self.store.list(prefix, &cursor, PAGE)?;
            all.extend(keys);
            if next.is_empty() {
                return Ok(all);
            }
            cursor = next;
        }
    }

    /// Visits all documents with their names, texts, and whether they are of the bundle. One that
    /// was put under a name that the bundle has, too, is passed over.
    fn each(&self, mut visit: impl FnMut(&str, &str, bool) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let bundled = bundle();
        for (name, text) in &bundled {
            visit(name, text, true)?;
        }
        for key in self.keys("text:")? {
            let name = &key["text:".len()..];
            if bundled.iter().all(|(bundled, _)| bundled != name) {
                if let Some(text) = self.store.get(&key)? {
                    visit(name, &String::from_utf8_lossy(&text), false)?;
                }
            }
        }
        Ok(())
    }

    /// The bundle's documents can't be put or deleted: nobody would see it.
    pub fn refuse_bundled(&self, name: &str) -> Result<(), Refusal> {
        if bundle().iter().any(|(bundled, _)| bundled == name) {
            return Err(Refusal::new(409, format!("{name} is deployed with the function; deploy it anew, or take another name")));
        }
        Ok(())
    }

    /// All pieces of all documents, and whether `maker` has done what it can for their vectors;
    /// without a maker they have none.
    pub fn pieces(&self, maker: Option<&str>) -> Result<(Vec<Piece>, bool), Refusal> {
        let (mut all, mut embedded) = (Vec::new(), maker.is_some());
        self.each(|name, text, _| {
            let mut pieces = pieces_of(name, text);
            if let Some(maker) = maker.filter(|_| embedded) {
                embedded = self.fill(&mut pieces, maker)?;
            }
            all.append(&mut pieces);
            Ok(())
        })?;
        Ok((all, embedded))
    }

    /// Gives pieces their vectors, those that are kept or new ones; false if `maker` makes none now.
    fn fill(&self, pieces: &mut [Piece], maker: &str) -> Result<bool, Refusal> {
        for some in pieces.chunks_mut(EMBEDDED_AT_ONCE) {
            let vectors = match self.kept(some, maker)? {
                Some(vectors) => vectors,
                None => match embed(&texts(some))? {
                    // All of them were refused, and would be again.
                    Some((vectors, by)) if by.is_empty() || by == maker => {
                        self.keep(some, maker, &vectors)?;
                        vectors
                    }
                    _ => return Ok(false),
                },
            };
            for (piece, vector) in some.iter_mut().zip(vectors) {
                piece.vector = vector;
            }
        }
        Ok(true)
    }

    fn kept(&self, pieces: &[Piece], maker: &str) -> Result<Option<Vec<Vec<f32>>>, Refusal> {
        let found = self.store.get(&vectors_key(pieces, maker))?;
        let (written_ms, vectors) = match found.and_then(|bytes| decode_vectors(&bytes).ok()) {
            Some(kept) if kept.1.len() == pieces.len() => kept,
            _ => return Ok(None),
        };
        // What was refused is not kept for ever: the reason may have been another than its length.
        if now_ms().saturating_sub(written_ms) > DAY_MS && vectors.iter().all(|vector| !vector.is_empty()) {
            self.keep(pieces, maker, &vectors)?;
        }
        Ok(Some(vectors))
    }

    fn keep(&self, pieces: &[Piece], maker: &str, vectors: &[Vec<f32>]) -> Result<(), Refusal> {
        match self.store.set_for(&vectors_key(pieces, maker), &encode_vectors(now_ms(), vectors), UNUSED_MS) {
            // Who has them can do without their being kept.
            Err(Error::LIMIT | Error::TOO_LARGE) => Ok(()),
            kept => Ok(kept?),
        }
    }

    /// Stores a document, embedded if it `embeds`; says of how many pieces, and whether there was
    /// none of that name.
    pub fn put(&self, name: &str, text: &str, embeds: bool) -> Result<(usize, bool), Refusal> {
        let pieces = pieces_of(name, text);
        for some in pieces.chunks(EMBEDDED_AT_ONCE).take_while(|_| embeds) {
            match embed(&texts(some))? {
                Some((vectors, by)) if !by.is_empty() => self.keep(some, &by, &vectors)?,
                // All of them were refused: so would be the others.
                _ => break,
            }
        }
        let key = format!("text:{name}");
        let old = self.store.get(&key)?;
        self.store.set(&key, text.as_bytes())?;
        self.forget(old.as_deref(), &pieces)?;
        Ok((pieces.len(), old.is_none()))
    }

    /// Removes a document; says whether it was there.
    pub fn delete(&self, name: &str) -> Result<bool, Refusal> {
        let key = format!("text:{name}");
        let old = self.store.get(&key)?;
        let found = self.store.delete(&key)?;
        self.forget(old.as_deref(), &[])?;
        Ok(found)
    }

    /// Removes the vectors of a text at once, but for those that `left` has, too. Another document
    /// of the same text gets its own anew.
    fn forget(&self, text: Option<&[u8]>, left: &[Piece]) -> Result<(), Refusal> {
        let left: Vec<String> = left.chunks(EMBEDDED_AT_ONCE).map(|some| vectors_key(some, "")).collect();
        let pieces = pieces_of("", &String::from_utf8_lossy(text.unwrap_or(b"")));
        for some in pieces.chunks(EMBEDDED_AT_ONCE).filter(|some| !left.contains(&vectors_key(some, ""))) {
            for key in self.keys(&vectors_prefix(some))? {
                self.store.delete(&key)?;
            }
        }
        Ok(())
    }

    /// The documents as JSON.
    pub fn list(&self) -> Result<String, Refusal> {
        let mut rows = Vec::new();
        self.each(|name, text, is_bundled| {
            let (pieces, mut embedded) = (pieces_of(name, text), true);
            for some in pieces.chunks(EMBEDDED_AT_ONCE) {
                embedded = embedded && !self.store.list(&vectors_prefix(some), "", 1)?.0.is_empty();
            }
            rows.push(format!(
                "{{\"name\":{},\"pieces\":{},\"embedded\":{embedded},\"bundled\":{is_bundled}}}",
                json_string(name),
                pieces.len()
            ));
            Ok(())
        })?;
        Ok(format!("{{\"documents\":[{}]}}", rows.join(",")))
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn vectors_prefix(pieces: &[Piece]) -> String {
    let text = texts(pieces).join("\0");
    format!("vectors:{:016x}-{:x}:", hash(&text), text.len())
}

fn vectors_key(pieces: &[Piece], maker: &str) -> String {
    format!("{}{:016x}", vectors_prefix(pieces), hash(maker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_paragraphs_with_their_lines() {
        let text = "# A\n\nfirst\n\n\n# B\nsecond\n";
        let pieces = pieces_of("d", text);
        assert_eq!(pieces.len(), 1); // small ones stay together
        assert_eq!((pieces[0].from, pieces[0].to), (1, 7));
        let long = format!("# A\n\n{}\n\n# B\n{}\n", "first ".repeat(100), "second ".repeat(100));
        let pieces = pieces_of("d", &long);
        assert_eq!(pieces.iter().map(|piece| (piece.from, piece.to)).collect::<Vec<_>>(), [(1, 3), (5, 6)]);
        assert!(pieces[1].text.starts_with("# B\nsecond"));
        assert_eq!(pieces_of("d", " \n\n"), []);
    }

    #[test]
    fn no_piece_is_too_long_and_nothing_is_lost() {
        let words: Vec<String> = (0..2000).map(|n| format!("w\u{e4}{n}")).collect();
        for text in [words.join(" "), words.join("\n"), words.concat()] {
            let pieces = pieces_of("d", &text);
            assert!(pieces.len() > 5);
            assert!(pieces.iter().all(|piece| piece.text.len() <= MAX_PIECE_BYTES));
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(squeeze(&texts(&pieces).concat()), squeeze(&text));
        }
    }

    #[test]
    fn no_piece_is_empty() {
        let pieces = pieces_of("d", &format!("x{}y\n{}", " ".repeat(2000), "\u{3000}".repeat(1000)));
        assert_eq!(texts(&pieces).iter().map(|text| text.trim()).collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn vectors_are_read_as_they_were_written() {
        let vectors = vec![vec![0.25, -1.5], Vec::new()];
        assert_eq!(decode_vectors(&encode_vectors(u64::MAX, &vectors)), Ok((u64::MAX, vectors)));
        assert!(decode_vectors(b"\xc0").is_err() && decode_vectors(b"\x92\x01").is_err());
    }

    #[test]
    fn vectors_belong_to_texts_and_their_maker_whatever_document_it_is() {
        let key = |name: &str, text: &str, maker: &str| vectors_key(&pieces_of(name, text), maker);
        assert_eq!(key("a", "one\n", "m/2"), key("b", "one\n", "m/2"));
        assert_ne!(key("a", "one\n", "m/2"), key("a", "one\n", "m/3"));
        assert_ne!(key("a", "one\n", "m/2"), key("a", "two\n", "m/2"));
    }
}
