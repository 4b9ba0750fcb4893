// SPDX-License-Identifier: Apache-2.0
//! What the host offers beyond WASI (`faas_v1`): keys and values, config and
//! secrets, HTTP requests, calls of other functions, jobs.
//!
//! ```ignore
//! use faas::v1::{Outgoing, Store};
//!
//! let visits = Store::open("default")?.increment("visits", 1)?;
//!
//! let first = Outgoing::get("https://a.example.org/").send()?; // both are under
//! let second = Outgoing::get("https://b.example.org/").send()?; // way from here on
//! let answer = first.body()?;
//! ```
//!
//! For commands and reactors alike. Only what is called is imported, and each of it
//! has to be granted in `function.toml` under `[capabilities]`: `kv`, `secrets`,
//! `outbound` (HTTP), `calls` (calls and jobs). Config values need no grant.
//!
//! Waiting costs the function no CPU time, but its time limit runs on.

use crate::msgpack::{DecodeError, Reader, Value, Writer};
use std::fmt;

/// Why a call was refused. The function's log has a line with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(pub u32);

impl Error {
    /// A range is not inside the memory.
    pub const FAULT: Error = Error(1);
    /// An argument has not the documented form.
    pub const INVALID: Error = Error(2);
    /// The handle is not open.
    pub const BAD_HANDLE: Error = Error(3);
    /// Not granted, by `function.toml` or by the other side.
    pub const DENIED: Error = Error(4);
    /// There is none.
    pub const NOT_FOUND: Error = Error(5);
    /// Another value is there than was expected.
    pub const CONFLICT: Error = Error(6);
    /// A key, a value, a request or a response is too large.
    pub const TOO_LARGE: Error = Error(7);
    /// Too many handles, a full store, calls too deep.
    pub const LIMIT: Error = Error(8);
    /// Not right now: try again later.
    pub const UNAVAILABLE: Error = Error(9);
    /// It took too long.
    pub const TIMEOUT: Error = Error(10);
    /// The other side failed.
    pub const FAILED: Error = Error(11);

    /// Whether the same call may succeed a little later.
    pub fn is_retryable(self) -> bool {
        self == Error::UNAVAILABLE
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "outside of the memory",
            2 => "invalid argument",
            3 => "no such handle",
            4 => "not granted",
            5 => "not found",
            6 => "conflict",
            7 => "too large",
            8 => "over a limit",
            9 => "not available now",
            10 => "timed out",
            11 => "failed",
            code => return write!(f, "faas_v1 error {code}"),
        })
    }
}

impl std::error::Error for Error {}

impl From<DecodeError> for Error {
    /// What the host wrote can't be read.
    fn from(_: DecodeError) -> Error {
        Error::FAILED
    }
}

fn check(errno: u32) -> Result<(), Error> {
    match errno {
        0 => Ok(()),
        code => Err(Error(code)),
    }
}

/// Makes a call that tells the length of its result, and copies that.
fn result(call: impl FnOnce(*mut u32) -> u32) -> Result<Vec<u8>, Error> {
    let mut size = 0;
    check(call(&mut size))?;
    let mut bytes = vec![0; size as usize];
    check(unsafe { raw::result_read(bytes.as_mut_ptr(), bytes.len(), 0) })?;
    Ok(bytes)
}

/// `None` where there is none.
fn optional<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(Error::NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of elements of an array, which follow.
fn array(reader: &mut Reader) -> Result<u32, Error> {
    match reader.value()? {
        Value::Array(count) => Ok(count),
        _ => Err(Error::FAILED),
    }
}

fn text(bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|_| Error::FAILED)
}

/// A store of keys and values. Keys are text of 1 to 512 bytes. Closed when dropped.
#[derive(Debug)]
pub struct Store {
    handle: u32,
}

impl Store {
    /// Opens a store: `default` is the function's own, any other name is that of the
    /// function which shares its store.
    ///
    /// # Errors
    /// [`Error::DENIED`] when `capabilities.kv` does not name it.
    pub fn open(name: &str) -> Result<Store, Error> {
        let mut handle = 0;
        check(unsafe { raw::kv_open(name.as_ptr(), name.len(), &mut handle) })?;
        Ok(Store { handle })
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// [`Error::DENIED`], [`Error::UNAVAILABLE`].
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        optional(result(|size| unsafe { raw::kv_get(self.handle, key.as_ptr(), key.len(), size) }))
    }

    /// Stores a value that stays.
    ///
    /// # Errors
    /// [`Error::DENIED`], [`Error::TOO_LARGE`], [`Error::LIMIT`], [`Error::UNAVAILABLE`].
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.set_for(key, value, 0)
    }

    /// Stores a value that is gone after so many milliseconds; 0 means that it stays.
    ///
    /// # Errors
    /// As [`Store::set`].
    pub fn set_for(&self, key: &str, value: &[u8], ttl_ms: u64) -> Result<(), Error> {
        check(unsafe { raw::kv_set(self.handle, key.as_ptr(), key.len(), value.as_ptr(), value.len(), ttl_ms) })
    }

    /// Removes a key; says whether it was there.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn delete(&self, key: &str) -> Result<bool, Error> {
        let done = check(unsafe { raw::kv_delete(self.handle, key.as_ptr(), key.len()) });
        Ok(optional(done)?.is_some())
    }

    /// Adds to an integer, atomically, and returns the sum; a missing key counts as 0.
    ///
    /// # Errors
    /// [`Error::CONFLICT`] when the value is no integer, or would not fit into 64 bits.
    pub fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        let mut sum = 0;
        check(unsafe { raw::kv_increment(self.handle, key.as_ptr(), key.len(), delta, &mut sum) })?;
        Ok(sum)
    }

    /// Stores a value if what is there is `expected` (`None`: nothing); says whether
    /// it was.
    ///
    /// # Errors
    /// As [`Store::set`].
    pub fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, value: &[u8]) -> Result<bool, Error> {
        let (absent, expected) = (u32::from(expected.is_none()), expected.unwrap_or(&[]));
        let (at, size) = (expected.as_ptr(), expected.len());
        let errno = unsafe {
            raw::kv_compare_and_set(
                self.handle, key.as_ptr(), key.len(), absent, at, size, value.as_ptr(), value.len(), 0,
            )
        };
        match check(errno) {
            Err(Error::CONFLICT) => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Up to `limit` keys (1 to 1000) that begin with `prefix`, in the order of their
    /// bytes, and the cursor for the next page: empty for the first page, and after
    /// the last one.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn list(&self, prefix: &str, cursor: &str, limit: u32) -> Result<(Vec<String>, String), Error> {
        let page = result(|size| unsafe {
            let (at, length) = (cursor.as_ptr(), cursor.len());
            raw::kv_list(self.handle, prefix.as_ptr(), prefix.len(), at, length, limit, size)
        })?;
        let mut reader = Reader::new(&page);
        let (mut keys, mut next) = (Vec::new(), String::new());
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"keys" => {
                    for _ in 0..array(&mut reader)? {
                        keys.push(reader.str()?.to_owned());
                    }
                }
                b"cursor" => next = reader.str()?.to_owned(),
                _ => reader.skip()?,
            }
        }
        Ok((keys, next))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        unsafe { raw::close(self.handle) };
    }
}

/// A config value of the function, if it is set.
///
/// # Errors
/// [`Error::UNAVAILABLE`].
pub fn config(name: &str) -> Result<Option<String>, Error> {
    optional(result(|size| unsafe { raw::config_get(name.as_ptr(), name.len(), size) }).and_then(text))
}

/// A secret that `function.toml` grants. To send one to another host, leave it to
/// `[[capabilities.credentials]]` instead: then the function never holds it.
///
/// # Errors
/// [`Error::DENIED`], [`Error::NOT_FOUND`], [`Error::UNAVAILABLE`].
pub fn secret(name: &str) -> Result<String, Error> {
    result(|size| unsafe { raw::secret_get(name.as_ptr(), name.len(), size) }).and_then(text)
}

/// A request to send: over HTTP, to another function, or to the job queue.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Outgoing<'a> {
    texts: Vec<(&'static str, &'a str)>,
    numbers: Vec<(&'static str, u64)>,
    headers: Vec<(&'a str, &'a [u8])>,
    body: &'a [u8],
}

impl<'a> Outgoing<'a> {
    /// An HTTP request for a URL, `https://host/path?query`.
    pub fn new(method: &'a str, url: &'a str) -> Outgoing<'a> {
        Outgoing { texts: vec![("method", method), ("url", url)], ..Outgoing::default() }
    }

    /// An HTTP GET of a URL.
    pub fn get(url: &'a str) -> Outgoing<'a> {
        Outgoing::new("GET", url)
    }

    /// A request to another function of this host; to its first route if `path` is
    /// empty.
    pub fn to(function: &'a str, method: &'a str, path: &'a str) -> Outgoing<'a> {
        Outgoing { texts: vec![("function", function), ("method", method), ("path", path)], ..Outgoing::default() }
    }

    fn text(mut self, key: &'static str, value: &'a str) -> Outgoing<'a> {
        self.texts.push((key, value));
        self
    }

    fn number(mut self, key: &'static str, value: u64) -> Outgoing<'a> {
        self.numbers.push((key, value));
        self
    }

    /// An alias, or the number of a version, instead of what routes serve.
    pub fn qualifier(self, qualifier: &'a str) -> Outgoing<'a> {
        self.text("qualifier", qualifier)
    }

    /// Adds a header.
    pub fn header(mut self, name: &'a str, value: &'a str) -> Outgoing<'a> {
        self.headers.push((name, value.as_bytes()));
        self
    }

    /// The body.
    pub fn body(mut self, body: &'a [u8]) -> Outgoing<'a> {
        self.body = body;
        self
    }

    /// How long the connection, the head, and each wait for the body may take.
    pub fn timeout_ms(self, timeout_ms: u64) -> Outgoing<'a> {
        self.number("timeout_ms", timeout_ms)
    }

    /// A job begins no sooner than after so many milliseconds.
    pub fn delay_ms(self, delay_ms: u64) -> Outgoing<'a> {
        self.number("delay_ms", delay_ms)
    }

    /// Jobs of one key are one job.
    pub fn idempotency_key(self, key: &'a str) -> Outgoing<'a> {
        self.text("idempotency_key", key)
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(256 + self.body.len());
        writer.map(self.texts.len() + self.numbers.len() + 2);
        for (key, value) in &self.texts {
            writer.str(key);
            writer.str(value);
        }
        for (key, value) in &self.numbers {
            writer.str(key);
            writer.uint(*value);
        }
        writer.str("headers");
        writer.array(self.headers.len());
        for (name, value) in &self.headers {
            writer.array(2);
            writer.str(name);
            writer.bin(value);
        }
        writer.str("body");
        writer.bin(self.body);
        writer.into_bytes()
    }

    /// Begins the HTTP request. It goes on while the function does something else, or
    /// begins another one. Redirects are answers like any other.
    ///
    /// # Errors
    /// [`Error::DENIED`], [`Error::INVALID`], [`Error::LIMIT`]; [`Incoming::head`] has
    /// the others.
    pub fn send(&self) -> Result<Incoming, Error> {
        self.begin(|at, size, handle| unsafe { raw::http_begin(at, size, handle) })
    }

    /// Begins a call of another function of this host, in memory: no connection, the
    /// caller's deadline.
    ///
    /// # Errors
    /// As [`Outgoing::send`].
    pub fn call(&self) -> Result<Incoming, Error> {
        self.begin(|at, size, handle| unsafe { raw::call_begin(at, size, handle) })
    }

    fn begin(&self, begin: impl FnOnce(*const u8, usize, *mut u32) -> u32) -> Result<Incoming, Error> {
        let (encoded, mut handle) = (self.encode(), 0);
        check(begin(encoded.as_ptr(), encoded.len(), &mut handle))?;
        Ok(Incoming { handle })
    }

    /// Hands the request to the job queue, where it outlives this one; returns the
    /// job's id.
    ///
    /// # Errors
    /// [`Error::DENIED`], [`Error::NOT_FOUND`], [`Error::TOO_LARGE`],
    /// [`Error::UNAVAILABLE`].
    pub fn enqueue(&self) -> Result<String, Error> {
        let encoded = self.encode();
        result(|size| unsafe { raw::job_enqueue(encoded.as_ptr(), encoded.len(), size) }).and_then(text)
    }
}

/// The head of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Header fields; names as the other side wrote them.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// First header of that name (in any case) whose value is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        fields.filter_map(|(_, value)| std::str::from_utf8(value).ok()).next()
    }

    fn decode(encoded: &[u8]) -> Result<Head, Error> {
        let mut reader = Reader::new(encoded);
        let mut head = Head::default();
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"status" => head.status = reader.uint()? as u16,
                b"headers" => {
                    for _ in 0..array(&mut reader)? {
                        if reader.value()? != Value::Array(2) {
                            return Err(Error::FAILED);
                        }
                        head.headers.push((reader.str()?.to_owned(), reader.bytes()?.to_owned()));
                    }
                }
                _ => reader.skip()?,
            }
        }
        Ok(head)
    }
}

/// A request under way, or answered. Ended when dropped.
#[derive(Debug)]
pub struct Incoming {
    handle: u32,
}

impl Incoming {
    /// Waits for the head.
    ///
    /// # Errors
    /// [`Error::DENIED`], [`Error::TIMEOUT`], [`Error::FAILED`], [`Error::UNAVAILABLE`].
    pub fn head(&self) -> Result<Head, Error> {
        Head::decode(&result(|size| unsafe { raw::response_head(self.handle, size) })?)
    }

    /// Waits for some of the body, and says how much it is; 0 at the end.
    ///
    /// # Errors
    /// As [`Incoming::head`]; [`Error::INVALID`] for an empty buffer.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut size = 0;
        check(unsafe { raw::response_read(self.handle, buffer.as_mut_ptr(), buffer.len(), &mut size) })?;
        Ok(size as usize)
    }

    /// Waits for all that is left of the body.
    ///
    /// # Errors
    /// As [`Incoming::head`].
    pub fn body(&self) -> Result<Vec<u8>, Error> {
        let (mut body, mut used) = (vec![0; 4096], 0);
        loop {
            match self.read(&mut body[used..])? {
                0 => break,
                more => used += more,
            }
            if used == body.len() {
                body.resize(2 * used, 0);
            }
        }
        body.truncate(used);
        Ok(body)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        unsafe { raw::close(self.handle) };
    }
}

/// Waits until one of some requests has something to say: its head, or, once that was
/// taken, more of its body or the end of it. Returns its index; of several, the first.
/// Without `timeout_ms` it waits for as long as it takes; 0 only looks.
///
/// # Errors
/// [`Error::TIMEOUT`], [`Error::INVALID`] for none of them or more than 64.
pub fn wait_any(requests: &[&Incoming], timeout_ms: Option<u64>) -> Result<usize, Error> {
    let handles: Vec<u32> = requests.iter().map(|request| request.handle).collect();
    let (timeout_ms, mut index) = (timeout_ms.unwrap_or(u64::MAX), 0);
    check(unsafe { raw::wait_any(handles.as_ptr(), handles.len(), timeout_ms, &mut index) })?;
    Ok(index as usize)
}

#[cfg(target_arch = "wasm32")]
mod raw {
    #[link(wasm_import_module = "faas_v1")]
    extern "C" {
        pub fn result_read(buffer: *mut u8, size: usize, offset: usize) -> u32;
        pub fn kv_open(name: *const u8, size: usize, store: *mut u32) -> u32;
        pub fn kv_get(store: u32, key: *const u8, key_size: usize, size: *mut u32) -> u32;
        pub fn kv_set(
            store: u32, key: *const u8, key_size: usize, value: *const u8, size: usize, ttl_ms: u64,
        ) -> u32;
        pub fn kv_delete(store: u32, key: *const u8, key_size: usize) -> u32;
        pub fn kv_list(
            store: u32, prefix: *const u8, prefix_size: usize, cursor: *const u8, cursor_size: usize, limit: u32,
            size: *mut u32,
        ) -> u32;
        pub fn kv_increment(store: u32, key: *const u8, key_size: usize, delta: i64, sum: *mut i64) -> u32;
        pub fn kv_compare_and_set(
            store: u32, key: *const u8, key_size: usize, flags: u32, expected: *const u8, expected_size: usize,
            value: *const u8, size: usize, ttl_ms: u64,
        ) -> u32;
        pub fn config_get(name: *const u8, name_size: usize, size: *mut u32) -> u32;
        pub fn secret_get(name: *const u8, name_size: usize, size: *mut u32) -> u32;
        pub fn http_begin(request: *const u8, size: usize, handle: *mut u32) -> u32;
        pub fn call_begin(request: *const u8, size: usize, handle: *mut u32) -> u32;
        pub fn job_enqueue(request: *const u8, request_size: usize, size: *mut u32) -> u32;
        pub fn response_head(handle: u32, size: *mut u32) -> u32;
        pub fn response_read(handle: u32, buffer: *mut u8, room: usize, size: *mut u32) -> u32;
        pub fn wait_any(handles: *const u32, count: usize, timeout_ms: u64, index: *mut u32) -> u32;
        pub fn close(handle: u32) -> u32;
    }
}

/// A host that grants nothing, so that functions' own tests build natively.
#[cfg(not(target_arch = "wasm32"))]
mod raw {
    #![allow(clippy::missing_safety_doc, clippy::too_many_arguments)]

    macro_rules! denied {
        ($($name:ident($($type:ty),*);)*) => {
            $(pub unsafe fn $name($(_: $type),*) -> u32 { 4 })*
        };
    }

    denied! {
        result_read(*mut u8, usize, usize);
        kv_open(*const u8, usize, *mut u32);
        kv_get(u32, *const u8, usize, *mut u32);
        kv_set(u32, *const u8, usize, *const u8, usize, u64);
        kv_delete(u32, *const u8, usize);
        kv_list(u32, *const u8, usize, *const u8, usize, u32, *mut u32);
        kv_increment(u32, *const u8, usize, i64, *mut i64);
        kv_compare_and_set(u32, *const u8, usize, u32, *const u8, usize, *const u8, usize, u64);
        config_get(*const u8, usize, *mut u32);
        secret_get(*const u8, usize, *mut u32);
        http_begin(*const u8, usize, *mut u32);
        call_begin(*const u8, usize, *mut u32);
        job_enqueue(*const u8, usize, *mut u32);
        response_head(u32, *mut u32);
        response_read(u32, *mut u8, usize, *mut u32);
        wait_any(*const u32, usize, u64, *mut u32);
        close(u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_map() {
        let request = Outgoing::new("PUT", "u").header("a", "b").timeout_ms(5).body(b"x");
        assert_eq!(
            request.encode(),
            b"\x85\xa6method\xa3PUT\xa3url\xa1u\xaatimeout_ms\x05\xa7headers\x91\x92\xa1a\xc4\x01b\xa4body\xc4\x01x"
        );
    }

    #[test]
    fn a_head_is_read_whatever_else_is_in_it() {
        let encoded = b"\x83\xa6status\xcc\xc8\xa5later\x91\xc0\xa7headers\x92\x92\xa1A\xa1b\x92\xa1a\xc4\x01\xff";
        let head = Head::decode(encoded).unwrap();
        assert_eq!((head.status, head.header("a"), head.headers.len()), (200, Some("b"), 2));
        assert_eq!(Head::decode(b"\x81\xa6status\xa1x"), Err(Error::FAILED));
        assert_eq!(Head::decode(b"\x81\xa7headers\xdd\xff\xff\xff\xff"), Err(Error::FAILED));
    }

    #[test]
    fn without_a_host_nothing_is_granted() {
        assert_eq!(Store::open("default").err(), Some(Error::DENIED));
        assert_eq!(config("A"), Err(Error::DENIED));
        assert_eq!(Outgoing::get("https://a.test/").send().err(), Some(Error::DENIED));
        assert_eq!(Error::CONFLICT.to_string(), "conflict");
        assert!(Error::UNAVAILABLE.is_retryable());
    }
}
