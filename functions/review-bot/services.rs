// SPDX-License-Identifier: Apache-2.0
//! What a review needs of the world, as one narrow trait: its tests run it against scripted answers.

use faas::json::Json;

/// An answer of `github` or `llm`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    pub retry_after_s: Option<u64>,
    /// The body; null when it is no JSON.
    pub json: Json,
}

/// Why a review can't go on now. It is tried again later, and goes on where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the job answers: 429 when it only came too early, 503 otherwise.
    pub status: u16,
    pub retry_after_s: Option<u64>,
    pub reason: String,
}

impl Failure {
    pub fn new(reason: impl Into<String>) -> Failure {
        Failure { status: 503, retry_after_s: None, reason: reason.into() }
    }
}

/// A call of the model that is under way.
pub type Call = u64;

/// All errors are of the transport: a status is an answer.
pub trait Services {
    /// Asks `github`; `path` with its query.
    fn github(&mut self, method: &str, path: &str, body: &str) -> Result<Reply, Failure>;
    /// Begins a request to `llm`; a GET when there is no body.
    fn begin(&mut self, path: &str, body: &str) -> Result<Call, Failure>;
    /// Waits until one of these is answered; says which, and the answer. It is not under way any more.
    fn wait(&mut self, calls: &[Call]) -> Result<(usize, Reply), Failure> {
        loop {
            if let Some(answered) = self.poll(calls, u64::MAX)? {
                return Ok(answered);
            }
        }
    }
    /// The same for so many milliseconds at most; `None` when none is answered by then.
    fn poll(&mut self, calls: &[Call], timeout_ms: u64) -> Result<Option<(usize, Reply)>, Failure>;
    fn get(&mut self, key: &str) -> Result<Option<String>, Failure>;
    /// Stores a value; for so many milliseconds, or for good with 0.
    fn set(&mut self, key: &str, value: &str, ttl_ms: u64) -> Result<(), Failure>;
    /// Stores a value if `expected` is there; says whether it was.
    fn swap(&mut self, key: &str, expected: Option<&str>, value: &str) -> Result<bool, Failure>;
    fn delete(&mut self, key: &str) -> Result<(), Failure>;
    /// Milliseconds since the epoch.
    fn now_ms(&mut self) -> u64;
    /// A number that nobody can guess.
    fn random(&mut self) -> u64;
    fn sleep_ms(&mut self, duration_ms: u64);
    /// A line of the log. No diffs, no bodies.
    fn log(&mut self, line: &str);
}
