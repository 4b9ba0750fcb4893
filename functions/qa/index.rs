// SPDX-License-Identifier: Apache-2.0
//! The documents in the function's store, in pieces.
//!
//! `doc:NAME` is a document's record, `part:NAME:GENERATION:N` are its pieces, some to a
//! value. A document is replaced by one compare-and-set of its record, behind parts that
//! are written under a new generation: who asks meanwhile has the one or the other.

use crate::{embed, Refusal};
use faas::json_string;
use faas::msgpack::{DecodeError, Reader, Value, Writer};
use faas::v1::{Error, Store};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;

const MAX_PIECE_BYTES: usize = 900;
/// Values may be a megabyte.
const MAX_PART_BYTES: usize = 256 * 1024;
const PAGE: u32 = 500;
/// Of changes that others make at the same time.
const MAX_TRIES: usize = 5;

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

/// What is known of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    hash: u64,
    generation: u64,
    parts: u64,
    pieces: u64,
    /// What made the vectors; empty where there are none.
    maker: String,
    is_bundled: bool,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.array(6);
        for number in [self.hash, self.generation, self.parts, self.pieces, u64::from(self.is_bundled)] {
            writer.uint(number);
        }
        writer.str(&self.maker);
        writer.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
        let mut reader = Reader::new(bytes);
        array(&mut reader)?;
        let mut uint = || reader.uint();
        let (hash, generation, parts, pieces, is_bundled) = (uint()?, uint()?, uint()?, uint()?, uint()? != 0);
        Ok(Record { hash, generation, parts, pieces, is_bundled, maker: reader.str()?.to_owned() })
    }
}

fn array(reader: &mut Reader) -> Result<u32, DecodeError> {
    match reader.value()? {
        Value::Array(count) => Ok(count),
        _ => Err(DecodeError::WrongType),
    }
}

fn encode_pieces(pieces: &[Piece]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.array(pieces.len());
    for piece in pieces {
        writer.array(4);
        writer.uint(piece.from);
        writer.uint(piece.to);
        writer.str(&piece.text);
        let bytes: Vec<u8> = piece.vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.bin(&bytes);
    }
    writer.into_bytes()
}

fn decode_pieces(document: &str, bytes: &[u8]) -> Result<Vec<Piece>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut pieces = Vec::new();
    for _ in 0..array(&mut reader)? {
        array(&mut reader)?;
        let (from, to, text) = (reader.uint()?, reader.uint()?, reader.str()?.to_owned());
        let values = reader.bytes()?.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        pieces.push(Piece { document: document.to_owned(), from, to, text, vector: values.collect() });
    }
    Ok(pieces)
}

/// FNV-1a: says whether a text has changed, and guards nothing.
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

/// Pieces in groups that fit into a value each.
fn in_parts(pieces: &[Piece]) -> Vec<&[Piece]> {
    let (mut parts, mut start, mut size) = (Vec::new(), 0, 0);
    for (at, piece) in pieces.iter().enumerate() {
        let more = piece.text.len() + 4 * piece.vector.len() + 32;
        if at > start && size + more > MAX_PART_BYTES {
            parts.push(&pieces[start..at]);
            start = at;
            size = 0;
        }
        size += more;
    }
    if start < pieces.len() {
        parts.push(&pieces[start..]);
    }
    parts
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

    fn record(&self, name: &str) -> Result<Option<(Record, Vec<u8>)>, Refusal> {
        match self.store.get(&format!("doc:{name}"))? {
            None => Ok(None),
            Some(bytes) => Ok(Some((Record::decode(&bytes).map_err(Error::from)?, bytes))),
        }
    }

    fn names(&self) -> Result<Vec<String>, Refusal> {
        let (mut names, mut cursor) = (Vec::new(), String::new());
        loop {
            let (keys, next) = self.store.list("doc:", &cursor, PAGE)?;
            names.extend(keys.iter().map(|key| key["doc:".len()..].to_owned()));
            if next.is_empty() {
                return Ok(names);
            }
            cursor = next;
        }
    }

    /// The bundle's documents can't be put or deleted: the next question would undo it.
    pub fn refuse_bundled(&self, name: &str) -> Result<(), Refusal> {
        if bundle().iter().any(|(bundled, _)| bundled == name) {
            return Err(Refusal::new(409, format!("{name} is deployed with the function; deploy it anew, or take another name")));
        }
        Ok(())
    }

    /// Takes over what was deployed with the function, and embeds what `maker` has not; without
    /// a maker vectors stay as they are.
    pub fn bring_up_to_date(&self, maker: Option<&str>) -> Result<(), Refusal> {
        let bundled = bundle();
        for (name, text) in &bundled {
            let known = self.record(name)?.map(|(record, _)| record);
            let is_current = known.as_ref().map_or(false, |record| {
                record.is_bundled && record.hash == hash(text) && maker.map_or(true, |maker| record.maker == maker)
            });
            if !is_current {
                let pieces = pieces_of(name, text);
                let embedded = if maker.is_some() { embed(&texts(&pieces))? } else { None };
                self.write(name, text, pieces, embedded, true)?;
            }
        }
        for name in self.names()? {
            let (record, _) = match self.record(&name)? {
                Some(known) => known,
                None => continue,
            };
            if record.is_bundled && !bundled.iter().any(|(bundled, _)| *bundled == name) {
                self.delete(&name)?;
            } else if maker.map_or(false, |maker| record.maker != maker) {
                self.embed_again(&name, &record)?;
            }
        }
        Ok(())
    }

    fn embed_again(&self, name: &str, record: &Record) -> Result<(), Refusal> {
        if let Some(mut pieces) = self.read(name, record)? {
            if let Some(embedded) = embed(&texts(&pieces))? {
                fill(&mut pieces, embedded.0);
                self.replace(name, &pieces, |known| {
                    // Put anew meanwhile: that one has vectors of its own.
                    let same = known.filter(|known| known.hash == record.hash)?;
                    Some(Record { maker: embedded.1.clone(), ..same.clone() })
                })?;
            }
        }
        Ok(())
    }

    /// Stores a document; says whether there was none of that name.
    pub fn write(
        &self, name: &str, text: &str, mut pieces: Vec<Piece>, embedded: Option<(Vec<Vec<f32>>, String)>,
        is_bundled: bool,
    ) -> Result<bool, Refusal> {
        let mut maker = String::new();
        if let Some((vectors, by)) = embedded {
            fill(&mut pieces, vectors);
            maker = by;
        }
        let record = Record { hash: hash(text), generation: 0, parts: 0, pieces: 0, maker, is_bundled };
        self.replace(name, &pieces, |_| Some(record.clone()))
    }

    /// Writes pieces under a new generation, and then the record that `make` makes of the known
    /// one, until nobody else has changed it meanwhile; `None` of `make` leaves all as it is.
    fn replace(
        &self, name: &str, pieces: &[Piece], make: impl Fn(Option<&Record>) -> Option<Record>,
    ) -> Result<bool, Refusal> {
        let generation = RandomState::new().build_hasher().finish();
        let parts = in_parts(pieces);
        for (at, part) in parts.iter().enumerate() {
            self.store.set(&part_key(name, generation, at as u64), &encode_pieces(part))?;
        }
        let (n_parts, n_pieces) = (parts.len() as u64, pieces.len() as u64);
        let ours = Record { hash: 0, generation, parts: n_parts, pieces: 0, maker: String::new(), is_bundled: false };
        for _ in 0..MAX_TRIES {
            let known = self.record(name)?;
            let record = match make(known.as_ref().map(|(record, _)| record)) {
                Some(record) => Record { generation, parts: n_parts, pieces: n_pieces, ..record },
                None => break,
            };
            let expected = known.as_ref().map(|(_, bytes)| bytes.as_slice());
            if self.store.compare_and_set(&format!("doc:{name}"), expected, &record.encode())? {
                return match known {
                    Some((old, _)) => self.forget(name, &old).map(|()| false),
                    None => Ok(true),
                };
            }
        }
        self.forget(name, &ours)?;
        Ok(false)
    }

    fn forget(&self, name: &str, record: &Record) -> Result<(), Refusal> {
        for at in 0..record.parts {
            self.store.delete(&part_key(name, record.generation, at))?;
        }
        Ok(())
    }

    /// Removes a document; says whether it was there.
    pub fn delete(&self, name: &str) -> Result<bool, Refusal> {
        let known = self.record(name)?;
        let found = self.store.delete(&format!("doc:{name}"))?;
        if let Some((record, _)) = known {
            self.forget(name, &record)?;
        }
        Ok(found)
    }

    /// The pieces of a record; `None` if it was replaced meanwhile.
    fn read(&self, name: &str, record: &Record) -> Result<Option<Vec<Piece>>, Refusal> {
        let mut pieces = Vec::with_capacity(record.pieces as usize);
        for at in 0..record.parts {
            match self.store.get(&part_key(name, record.generation, at))? {
                Some(bytes) => pieces.extend(decode_pieces(name, &bytes).map_err(Error::from)?),
                None => return Ok(None),
            }
        }
        Ok(Some(pieces))
    }

    /// All pieces of all documents.
    pub fn pieces(&self) -> Result<Vec<Piece>, Refusal> {
        let mut all = Vec::new();
        for name in self.names()? {
            for _ in 0..MAX_TRIES {
                let found = match self.record(&name)? {
                    Some((record, _)) => self.read(&name, &record)?,
                    None => break,
                };
                if let Some(pieces) = found {
                    all.extend(pieces);
                    break;
                }
            }
        }
        Ok(all)
    }

    /// The documents as JSON.
    pub fn list(&self) -> Result<String, Refusal> {
        let mut rows = Vec::new();
        for name in self.names()? {
            if let Some((record, _)) = self.record(&name)? {
                rows.push(format!(
                    "{{\"name\":{},\"pieces\":{},\"embedded\":{},\"bundled\":{}}}",
                    json_string(&name),
                    record.pieces,
                    !record.maker.is_empty(),
                    record.is_bundled
                ));
            }
        }
        Ok(format!("{{\"documents\":[{}]}}", rows.join(",")))
    }
}

fn part_key(name: &str, generation: u64, at: u64) -> String {
    format!("part:{name}:{generation:016x}:{at}")
}

fn fill(pieces: &mut [Piece], vectors: Vec<Vec<f32>>) {
    for (piece, vector) in pieces.iter_mut().zip(vectors) {
        piece.vector = vector;
    }
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
    fn records_and_pieces_are_read_as_they_were_written() {
        let record = Record { hash: u64::MAX, generation: 1, parts: 2, pieces: 3, maker: "m/2".into(), is_bundled: true };
        assert_eq!(Record::decode(&record.encode()), Ok(record));
        let mut pieces = pieces_of("d", "one\n");
        fill(&mut pieces, vec![vec![0.25, -1.5]]);
        assert_eq!(decode_pieces("d", &encode_pieces(&pieces)), Ok(pieces));
        assert!(Record::decode(b"\xc0").is_err() && decode_pieces("d", b"\x91\xc0").is_err());
    }

    #[test]
    fn parts_stay_below_the_limit_of_values() {
        let piece = Piece { document: "d".into(), from: 1, to: 1, text: "x".repeat(900), vector: vec![0.5; 1024] };
        let pieces = vec![piece; 500];
        let parts = in_parts(&pieces);
        assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), 500);
        assert!(parts.iter().all(|part| encode_pieces(part).len() <= MAX_PART_BYTES));
        assert!(in_parts(&[]).is_empty());
    }
}
