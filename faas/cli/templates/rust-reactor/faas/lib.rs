// SPDX-License-Identifier: Apache-2.0
//! SDK for `reactor` functions; [`v1`], [`nn`] and [`json`] are for commands as well.
//!
//! A reactor function receives a whole request and returns a whole response:
//!
//! ```ignore
//! use faas::{Request, Response};
//!
//! fn hello(request: &Request) -> Response {
//!     Response::text(format!("hello from {}\n", request.path))
//! }
//!
//! faas::handler!(hello);
//! ```
//!
//! Build it as a `cdylib` for `wasm32-wasi` (`wasm32-wasip1` since Rust 1.78).
//!
//! The host makes a fresh instance for every request and discards its memory
//! afterwards, so statics do not carry over from one request to the next. A
//! panic is a trap: the host logs the message and answers with a 5xx.

#![deny(missing_docs)]

pub mod json;
pub mod msgpack;
pub mod nn;
pub mod v1;

use msgpack::{DecodeError, Reader, Value, Writer};

/// A request. Borrows from the memory that the host wrote it to, which lives as
/// long as the instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Method as sent: `GET`, `POST`, ...
    pub method: &'a str,
    /// Request path, with the percent-encoding as the host left it.
    pub path: &'a str,
    /// Raw query, without the `?`; empty when there is none.
    pub query: &'a str,
    /// Header fields in order of arrival. Names are in lower case and may occur
    /// more than once; values are bytes, since HTTP does not promise UTF-8.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Route parameters: the route `/user/{id}` gives `id`.
    pub params: Vec<(&'a str, &'a str)>,
    /// The route pattern that matched.
    pub route: &'a str,
    /// Name of this function.
    pub function: &'a str,
    /// Deployed version of this function.
    pub version: u64,
    /// Identifies the request in the host's log.
    pub request_id: &'a str,
    /// Address of the client, as text.
    pub remote_addr: &'a str,
    /// Milliseconds left for this request when it was handed over; the host
    /// stops the function after that. 0 when the host gave none.
    pub deadline_ms: u64,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Decodes the msgpack map that the host sends. Keys that this version does
    /// not know are skipped, whatever their values are.
    ///
    /// # Errors
    /// When `data` is not a msgpack map, ends early, or has a known key with a
    /// value of the wrong type.
    pub fn decode(data: &'a [u8]) -> Result<Request<'a>, DecodeError> {
        let mut reader = Reader::new(data);
        let mut request = Request::default();
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"method" => request.method = reader.str()?,
                b"path" => request.path = reader.str()?,
                b"query" => request.query = reader.str()?,
                b"headers" => {
                    request.headers = pairs(&mut reader, |r| r.str(), |r| r.bytes())?;
                }
                b"params" => request.params = pairs(&mut reader, |r| r.str(), |r| r.str())?,
                b"route" => request.route = reader.str()?,
                b"function" => request.function = reader.str()?,
                b"version" => request.version = reader.uint()?,
                b"request_id" => request.request_id = reader.str()?,
                b"remote_addr" => request.remote_addr = reader.str()?,
                b"deadline_ms" => request.deadline_ms = reader.uint()?,
                b"body" => request.body = reader.bytes()?,
                _ => reader.skip()?,
            }
        }
        Ok(request)
    }

    /// First header field of that name (in any case) whose value is UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .find_map(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// Route parameter by name.
    pub fn param(&self, name: &str) -> Option<&'a str> {
        self.params.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// First value of a query parameter, decoded; see [`form_value`].
    pub fn query_value(&self, name: &str) -> Option<String> {
        form_value(self.query.as_bytes(), name)
    }
}

/// Reads a map, or an array of two-element arrays.
fn pairs<'a, K, V>(
    reader: &mut Reader<'a>,
    key: impl Fn(&mut Reader<'a>) -> Result<K, DecodeError>,
    value: impl Fn(&mut Reader<'a>) -> Result<V, DecodeError>,
) -> Result<Vec<(K, V)>, DecodeError> {
    let (count, nested) = match reader.value()? {
        Value::Map(count) => (count, false),
        Value::Array(count) => (count, true),
        _ => return Err(DecodeError::WrongType),
    };
    // Not with_capacity(count): the count is checked only by reading on.
    let mut list = Vec::new();
    for _ in 0..count {
        if nested && reader.value()? != Value::Array(2) {
            return Err(DecodeError::WrongType);
        }
        list.push((key(reader)?, value(reader)?));
    }
    Ok(list)
}

/// First value of `name` in `application/x-www-form-urlencoded` text (a query, or
/// the body of a form), decoded; bytes that are not UTF-8 become U+FFFD. Empty
/// for `name` and `name=`, `None` when it does not occur.
pub fn form_value(form: &[u8], name: &str) -> Option<String> {
    form.split(|byte| *byte == b'&').find_map(|field| {
        let (key, value) = match field.iter().position(|byte| *byte == b'=') {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &field[field.len()..]),
        };
        if !field.is_empty() && form_decode(key) == name {
            Some(form_decode(value))
        } else {
            None
        }
    })
}

/// Decodes one form-urlencoded name or value: `+` is a space, `%XX` a byte; a `%`
/// without two hex digits stands for itself.
fn form_decode(text: &[u8]) -> String {
    let hex = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _, _) => out.push(b' '),
            (byte, _, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A response: status, header fields, body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code; the host refuses codes outside 200..=599.
    pub status: u16,
    /// Header fields in the order in which they are sent. The host sets
    /// `Content-Length`, and refuses CR, LF and NUL.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Default for Response {
    /// Status 200 without headers or body.
    fn default() -> Response {
        Response::new(200)
    }
}

impl Response {
    /// A response without headers or body.
    pub fn new(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    /// 200 with a `text/plain` body.
    pub fn text(body: impl Into<String>) -> Response {
        Response::new(200)
            .header("content-type", "text/plain; charset=utf-8")
            .with_body(body.into())
    }

    /// 200 with a `text/html` body.
    pub fn html(body: impl Into<String>) -> Response {
        Response::new(200)
            .header("content-type", "text/html; charset=utf-8")
            .with_body(body.into())
    }

    /// 200 with an `application/json` body; the caller makes the JSON, perhaps
    /// with [`json_string`].
    pub fn json(body: impl Into<String>) -> Response {
        Response::new(200).header("content-type", "application/json").with_body(body.into())
    }

    /// Sets the status code.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Response {
        self.status = status;
        self
    }

    /// Adds a header field, also when one of that name exists.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Response {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Replaces the body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Response {
        self.body = body.into();
        self
    }

    /// The msgpack map that the host reads.
    pub fn encode(&self) -> Vec<u8> {
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.len() + 11).sum();
        let mut writer = Writer::with_capacity(40 + headers + self.body.len());
        writer.map(3);
        writer.str("status");
        writer.uint(u64::from(self.status));
        writer.str("headers");
        writer.array(self.headers.len());
        for (name, value) in &self.headers {
            writer.array(2);
            writer.str(name);
            writer.str(value);
        }
        writer.str("body");
        writer.bin(&self.body);
        writer.into_bytes()
    }
}

/// `text` as a JSON string, quotes included.
pub fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Decodes a request, calls the handler and encodes what it returns.
pub fn serve(data: &[u8], handler: impl Fn(&Request) -> Response) -> Vec<u8> {
    match Request::decode(data) {
        Ok(request) => handler(&request).encode(),
        // The host's fault, not the client's: hence 500 and not 400.
        Err(error) => Response::text(format!("the function could not decode the request: {error}\n"))
            .with_status(500)
            .encode(),
    }
}

/// Defines the module's exports (`_initialize`, `faas_alloc`, `faas_handle`) for a
/// handler of type `fn(&Request) -> Response`. To be used once in a module.
#[macro_export]
macro_rules! handler {
    ($handler:path) => {
        // Checks the handler's type, and keeps a native build from calling it unused.
        const _: fn(&$crate::Request) -> $crate::Response = $handler;

        // Only for wasm, so that the function's own tests can run natively.
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            extern "C" {
                fn __wasm_call_ctors();
            }

            // The explicit call tells the linker that constructors are taken care
            // of. Without it every export is wrapped to run them again.
            #[no_mangle]
            extern "C" fn _initialize() {
                unsafe { __wasm_call_ctors() }
            }

            #[no_mangle]
            extern "C" fn faas_alloc(size: u32) -> u32 {
                $crate::exports::alloc(size)
            }

            #[no_mangle]
            unsafe extern "C" fn faas_handle(data: u32, size: u32) -> u64 {
                $crate::exports::handle(data, size, $handler)
            }
        };
    };
}

/// What the exports do. Called by the code that [`handler!`] makes.
#[doc(hidden)]
#[cfg(target_arch = "wasm32")]
pub mod exports {
    use super::{serve, Request, Response};
    use std::alloc::Layout;

    /// `size` bytes for the host to write to, never freed; 0 when memory is refused.
    pub fn alloc(size: u32) -> u32 {
        // Not zero bytes: the allocator does not define what that gives.
        match Layout::from_size_align(size.max(1) as usize, 16) {
            Ok(layout) => unsafe { std::alloc::alloc(layout) as u32 },
            Err(_) => 0,
        }
    }

    /// Returns `(pointer << 32) | length` of the response.
    ///
    /// # Safety
    /// The host has written `size` bytes at `data`, which [`alloc`] gave.
    pub unsafe fn handle(data: u32, size: u32, handler: fn(&Request) -> Response) -> u64 {
        let request = std::slice::from_raw_parts(data as *const u8, size as usize);
        // Leaked on purpose: the host reads it, then discards the whole memory.
        let response = Vec::leak(serve(request, handler));
        (response.as_ptr() as u64) << 32 | response.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::default();
        writer.map(14);
        writer.str("method");
        writer.str("POST");
        writer.str("path");
        writer.str("/echo/x");
        // Keys of a later protocol, of nested and of scalar types.
        writer.str("later");
        writer.array(2);
        writer.map(1);
        writer.str("a");
        writer.array(0);
        writer.uint(70_000);
        writer.str("scalars");
        writer.raw(&[
            0x9d, 0xc0, 0xc2, 0xc3, 0xff, 0xd0, 0x80, 0xd1, 0x80, 0, 0xd2, 0, 0, 0, 1, 0xd3, 0xff, 0,
            0, 0, 0, 0, 0, 0, 0xca, 0, 0, 0, 0, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xd4, 1, 2, 0xc7, 2, 5,
            9, 9, 0xcc, 200,
        ]);
        writer.str("query");
        writer.str("a=1&b=x%20y+z&c");
        writer.str("headers");
        writer.array(3);
        for (name, value) in [("host", &b"h"[..]), ("x-raw", &b"\xff\xfe"[..]), ("x-raw", b"ok")] {
            writer.array(2);
            writer.str(name);
            writer.bin(value);
        }
        writer.str("params");
        writer.map(1);
        writer.str("id");
        writer.str("7");
        writer.str("route");
        writer.str("/echo/{id}");
        writer.str("function");
        writer.str("echo");
        writer.str("version");
        writer.uint(3);
        writer.str("request_id");
        writer.str("r1");
        writer.str("remote_addr");
        writer.str("127.0.0.1");
        writer.str("deadline_ms");
        writer.uint(5_000_000_000);
        writer.str("body");
        writer.bin(&[0, 1, 2, 255]);
        writer.into_bytes()
    }

    #[test]
    fn decodes_a_request_and_skips_unknown_keys() {
        let data = sample();
        let request = Request::decode(&data).unwrap();
        assert_eq!(request.method, "POST");
        assert_eq!(request.query, "a=1&b=x%20y+z&c");
        assert_eq!(request.headers.len(), 3);
        assert_eq!(request.headers[1], ("x-raw", &b"\xff\xfe"[..]));
        assert_eq!(request.header("Host"), Some("h"));
        assert_eq!(request.header("x-raw"), Some("ok"));
        assert_eq!(request.header("absent"), None);
        assert_eq!(request.param("id"), Some("7"));
        assert_eq!(request.version, 3);
        assert_eq!(request.deadline_ms, 5_000_000_000);
        assert_eq!(request.body, &[0, 1, 2, 255]);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let data = sample();
        for end in 0..data.len() {
            assert!(Request::decode(&data[..end]).is_err(), "prefix of {end} bytes");
        }
    }

    #[test]
    fn arbitrary_damage_does_not_panic() {
        let data = sample();
        for at in 0..data.len() {
            for byte in 0..=255 {
                let mut damaged = data.clone();
                damaged[at] = byte;
                let _ = Request::decode(&damaged);
            }
        }
    }

    #[test]
    fn wrong_types_are_errors() {
        // {"method": 1}, {"headers": 1}, {"headers": [[]]}, {"version": -1}, [], nil
        assert!(Request::decode(b"\x81\xa6method\x01").is_err());
        assert!(Request::decode(b"\x81\xa7headers\x01").is_err());
        assert!(Request::decode(b"\x81\xa7headers\x91\x90").is_err());
        assert!(Request::decode(b"\x81\xa7version\xff").is_err());
        assert!(Request::decode(b"\x90").is_err());
        assert!(Request::decode(b"\xc0").is_err());
    }

    #[test]
    fn query_values() {
        let data = sample();
        let request = Request::decode(&data).unwrap();
        assert_eq!(request.query_value("a").as_deref(), Some("1"));
        assert_eq!(request.query_value("b").as_deref(), Some("x y z"));
        assert_eq!(request.query_value("c").as_deref(), Some(""));
        assert_eq!(request.query_value("d"), None);
        assert_eq!(form_value(b"p=100%&q=%zz%4", "p").as_deref(), Some("100%"));
        assert_eq!(form_value(b"p=100%&q=%zz%4", "q").as_deref(), Some("%zz%4"));
        assert_eq!(form_value(b"", ""), None);
    }

    #[test]
    fn encodes_a_response() {
        let encoded = Response::new(201).header("x-a", "b").with_body("ok").encode();
        assert_eq!(
            encoded,
            b"\x83\xa6status\xcc\xc9\xa7headers\x91\x92\xa3x-a\xa1b\xa4body\xc4\x02ok"
        );
    }

    #[test]
    fn serves() {
        let data = sample();
        let answer = serve(&data, |request| Response::text(request.path));
        assert!(answer.ends_with(b"\xc4\x07/echo/x"));
        let answer = serve(b"\xc1", |_| unreachable!());
        assert!(answer.starts_with(b"\x83\xa6status\xcd\x01\xf4"));
    }

    #[test]
    fn json_strings() {
        assert_eq!(json_string("a\"b\\c\n\u{7f}\u{e4}"), "\"a\\\"b\\\\c\\u000a\\u007f\u{e4}\"");
    }
}
