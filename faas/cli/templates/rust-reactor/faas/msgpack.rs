// SPDX-License-Identifier: Apache-2.0
//! The part of [msgpack](https://github.com/msgpack/msgpack/blob/master/spec.md)
//! that the host's protocol needs. Reading borrows; nothing recurses, so nesting
//! cannot overflow the stack.

use std::fmt;

/// Why a value could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends inside a value.
    Truncated,
    /// The value is of another type than the one asked for.
    WrongType,
    /// The byte 0xc1, which msgpack does not use.
    Invalid,
    /// A string is not UTF-8.
    NotUtf8,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeError::Truncated => "truncated msgpack",
            DecodeError::WrongType => "msgpack value of the wrong type",
            DecodeError::Invalid => "invalid msgpack",
            DecodeError::NotUtf8 => "string is not UTF-8",
        })
    }
}

impl std::error::Error for DecodeError {}

/// A scalar, or the head of a container whose elements follow in the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// nil
    Nil,
    /// true or false
    Bool(bool),
    /// An integer that is not negative.
    Uint(u64),
    /// A negative integer.
    Int(i64),
    /// float 32 or float 64
    Float(f64),
    /// str; whether it is UTF-8 has not been checked.
    Str(&'a [u8]),
    /// bin
    Bin(&'a [u8]),
    /// ext: type and data
    Ext(i8, &'a [u8]),
    /// That many values follow.
    Array(u32),
    /// That many pairs of values follow.
    Map(u32),
}

/// Reads values one after the other.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `data`.
    pub fn new(data: &'a [u8]) -> Reader<'a> {
        Reader { rest: data }
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], DecodeError> {
        if size > self.rest.len() {
            return Err(DecodeError::Truncated);
        }
        let (head, rest) = self.rest.split_at(size);
        self.rest = rest;
        Ok(head)
    }

    /// A big-endian number of 1, 2, 4 or 8 bytes.
    fn number(&mut self, size: usize) -> Result<u64, DecodeError> {
        Ok(self.take(size)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn counted(&mut self, size: usize) -> Result<&'a [u8], DecodeError> {
        let count = self.number(size)? as usize;
        self.take(count)
    }

    fn ext(&mut self, count: usize) -> Result<Value<'a>, DecodeError> {
        let kind = self.number(1)? as u8 as i8;
        Ok(Value::Ext(kind, self.take(count)?))
    }

    /// The next value, or the head of the next container.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end of the input, and
    /// [`DecodeError::Invalid`].
    pub fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        let signed = |number: i64| match u64::try_from(number) {
            Ok(number) => Value::Uint(number),
            Err(_) => Value::Int(number),
        };
        let tag = self.take(1)?[0];
        Ok(match tag {
            0x00..=0x7f => Value::Uint(u64::from(tag)),
            0x80..=0x8f => Value::Map(u32::from(tag & 0x0f)),
            0x90..=0x9f => Value::Array(u32::from(tag & 0x0f)),
            0xa0..=0xbf => Value::Str(self.take(usize::from(tag & 0x1f))?),
            0xc0 => Value::Nil,
            0xc1 => return Err(DecodeError::Invalid),
            0xc2 | 0xc3 => Value::Bool(tag == 0xc3),
            0xc4..=0xc6 => Value::Bin(self.counted(1 << (tag - 0xc4))?),
            0xc7..=0xc9 => {
                let count = self.number(1 << (tag - 0xc7))? as usize;
                self.ext(count)?
            }
            0xca => Value::Float(f64::from(f32::from_bits(self.number(4)? as u32))),
            0xcb => Value::Float(f64::from_bits(self.number(8)?)),
            0xcc..=0xcf => Value::Uint(self.number(1 << (tag - 0xcc))?),
            0xd0 => signed(i64::from(self.number(1)? as u8 as i8)),
            0xd1 => signed(i64::from(self.number(2)? as u16 as i16)),
            0xd2 => signed(i64::from(self.number(4)? as u32 as i32)),
            0xd3 => signed(self.number(8)? as i64),
            0xd4..=0xd8 => self.ext(1 << (tag - 0xd4))?,
            0xd9..=0xdb => Value::Str(self.counted(1 << (tag - 0xd9))?),
            0xdc => Value::Array(self.number(2)? as u32),
            0xdd => Value::Array(self.number(4)? as u32),
            0xde => Value::Map(self.number(2)? as u32),
            0xdf => Value::Map(self.number(4)? as u32),
            0xe0..=0xff => Value::Int(i64::from(tag as i8)),
        })
    }

    /// Passes over one value with all that it contains.
    ///
    /// # Errors
    /// As [`Reader::value`].
    pub fn skip(&mut self) -> Result<(), DecodeError> {
        let mut left: u64 = 1;
        while left > 0 {
            left -= 1;
            left += match self.value()? {
                Value::Array(count) => u64::from(count),
                Value::Map(count) => 2 * u64::from(count),
                _ => 0,
            };
        }
        Ok(())
    }

    /// A str or a bin.
    ///
    /// # Errors
    /// As [`Reader::value`], and [`DecodeError::WrongType`].
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        match self.value()? {
            Value::Str(bytes) | Value::Bin(bytes) => Ok(bytes),
            _ => Err(DecodeError::WrongType),
        }
    }

    /// A str (or a bin) that is UTF-8.
    ///
    /// # Errors
    /// As [`Reader::bytes`], and [`DecodeError::NotUtf8`].
    pub fn str(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::NotUtf8)
    }

    /// An integer that is not negative.
    ///
    /// # Errors
    /// As [`Reader::value`], and [`DecodeError::WrongType`].
    pub fn uint(&mut self) -> Result<u64, DecodeError> {
        match self.value()? {
            Value::Uint(number) => Ok(number),
            _ => Err(DecodeError::WrongType),
        }
    }

    /// The number of pairs of a map, which follow.
    ///
    /// # Errors
    /// As [`Reader::value`], and [`DecodeError::WrongType`].
    pub fn map(&mut self) -> Result<u32, DecodeError> {
        match self.value()? {
            Value::Map(count) => Ok(count),
            _ => Err(DecodeError::WrongType),
        }
    }
}

/// Writes values one after the other, each in its shortest form.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Writer {
        Writer { out: Vec::with_capacity(capacity) }
    }

    /// What has been written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// Bytes that are msgpack already.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A tag and a count. `fix` gives the one-byte form, with the number of counts
    /// it covers; `tags` are the 8-, 16- and 32-bit forms.
    fn head(&mut self, count: usize, fix: Option<(u8, usize)>, tags: [Option<u8>; 3]) {
        let count32 = u32::try_from(count).expect("msgpack counts have at most 32 bits");
        match (fix, tags) {
            (Some((base, limit)), _) if count < limit => self.out.push(base | count as u8),
            (_, [Some(tag), _, _]) if count < 1 << 8 => self.out.extend([tag, count as u8]),
            (_, [_, Some(tag), _]) if count < 1 << 16 => {
                self.out.push(tag);
                self.out.extend((count as u16).to_be_bytes());
            }
            (_, [_, _, tag]) => {
                self.out.extend(tag);
                self.out.extend(count32.to_be_bytes());
            }
        }
    }

    /// The head of an array; `count` values are to follow.
    pub fn array(&mut self, count: usize) {
        self.head(count, Some((0x90, 16)), [None, Some(0xdc), Some(0xdd)]);
    }

    /// The head of a map; `count` pairs of values are to follow.
    pub fn map(&mut self, count: usize) {
        self.head(count, Some((0x80, 16)), [None, Some(0xde), Some(0xdf)]);
    }

    /// A str.
    pub fn str(&mut self, text: &str) {
        self.head(text.len(), Some((0xa0, 32)), [Some(0xd9), Some(0xda), Some(0xdb)]);
        self.raw(text.as_bytes());
    }

    /// A bin.
    pub fn bin(&mut self, bytes: &[u8]) {
        self.head(bytes.len(), None, [Some(0xc4), Some(0xc5), Some(0xc6)]);
        self.raw(bytes);
    }

    /// An integer that is not negative.
    pub fn uint(&mut self, number: u64) {
        match number {
            0..=0x7f => self.out.push(number as u8),
            0x80..=0xff => self.out.extend([0xcc, number as u8]),
            0x100..=0xffff => {
                self.out.push(0xcd);
                self.out.extend((number as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.out.push(0xce);
                self.out.extend((number as u32).to_be_bytes());
            }
            _ => {
                self.out.push(0xcf);
                self.out.extend(number.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_round_trip_at_every_boundary() {
        for size in [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(size);
            let mut writer = Writer::default();
            writer.str(&text);
            writer.bin(text.as_bytes());
            writer.array(size);
            writer.map(size);
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.value(), Ok(Value::Str(text.as_bytes())));
            assert_eq!(reader.value(), Ok(Value::Bin(text.as_bytes())));
            assert_eq!(reader.value(), Ok(Value::Array(size as u32)));
            assert_eq!(reader.value(), Ok(Value::Map(size as u32)));
            assert_eq!(reader.value(), Err(DecodeError::Truncated));
        }
    }

    #[test]
    fn numbers_round_trip_at_every_boundary() {
        for number in [0, 127, 128, 255, 256, 65_535, 65_536, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
            let mut writer = Writer::default();
            writer.uint(number);
            let bytes = writer.into_bytes();
            assert_eq!(Reader::new(&bytes).uint(), Ok(number));
        }
    }

    #[test]
    fn scalars() {
        let read = |bytes: &'static [u8]| Reader::new(bytes).value();
        assert_eq!(read(b"\xc0"), Ok(Value::Nil));
        assert_eq!(read(b"\xc3"), Ok(Value::Bool(true)));
        assert_eq!(read(b"\xff"), Ok(Value::Int(-1)));
        assert_eq!(read(b"\xd0\x80"), Ok(Value::Int(-128)));
        assert_eq!(read(b"\xd1\x00\x05"), Ok(Value::Uint(5)));
        assert_eq!(read(b"\xd3\x80\0\0\0\0\0\0\0"), Ok(Value::Int(i64::MIN)));
        assert_eq!(read(b"\xca\x3f\x80\0\0"), Ok(Value::Float(1.0)));
        assert_eq!(read(b"\xcb\x3f\xf0\0\0\0\0\0\0"), Ok(Value::Float(1.0)));
        assert_eq!(read(b"\xd5\xff\x01\x02"), Ok(Value::Ext(-1, &[1, 2])));
        assert_eq!(read(b"\xc7\x00\x01"), Ok(Value::Ext(1, &[])));
        assert_eq!(read(b"\xc1"), Err(DecodeError::Invalid));
        assert_eq!(read(b"\xdb\xff\xff\xff\xff"), Err(DecodeError::Truncated));
    }

    #[test]
    fn deep_nesting_does_not_recurse() {
        let mut bytes = vec![0x91; 1_000_000];
        bytes.push(0xc0);
        assert_eq!(Reader::new(&bytes).skip(), Ok(()));
    }

    #[test]
    fn false_counts_fail_without_allocating() {
        assert_eq!(Reader::new(b"\xdf\xff\xff\xff\xff").skip(), Err(DecodeError::Truncated));
    }

    #[test]
    fn text_must_be_utf8() {
        assert_eq!(Reader::new(b"\xa1\xff").str(), Err(DecodeError::NotUtf8));
    }
}
