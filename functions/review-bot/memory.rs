// SPDX-License-Identifier: Apache-2.0
//! What is kept of a pull request between reviews, and the lock that keeps two of them apart.

use crate::findings::Finding;
use crate::json_out::{elements, integer, number, object, string, text, write};
use crate::services::{Call, Failure, Reply, Services};
use faas::json::Json;

/// More findings than that are not remembered.
const MAX_FINDINGS: usize = 200;
/// Nor more paths of either kind: values of a store are bounded.
const MAX_PATHS_BYTES: usize = 100 * 1024;

/// What is known of a pull request that nobody pushes to is forgotten then: the store is bounded. The comment and its
/// marker stay.
pub const FORGET_MS: u64 = 180 * 24 * 3_600_000;

/// What is known of a pull request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The sticky comment.
    pub comment: Option<u64>,
    /// The commit that was reviewed last; empty before the first review.
    pub head: String,
    /// The last comment that asked for a review and got one.
    pub asked: u64,
    /// What was reported and is, as far as known, still there.
    pub findings: Vec<Finding>,
    /// Paths that should have been read and were not: over the budget, or the model failed. The next review reads them.
    pub unread: Vec<String>,
    /// Paths of files that no model may see.
    pub private: Vec<String>,
    /// The review is done and kept, but perhaps not in the comment yet.
    pub pending: bool,
    /// The comment shows how far a review is.
    pub unfinished: bool,
    /// A comment was sent whose making nobody has checked yet: there may be two.
    pub posting: bool,
}

impl Memory {
    pub fn load(services: &mut dyn Services, pull: &str) -> Result<Memory, Failure> {
        let kept = services.get(&format!("pull/{pull}"))?.and_then(|text| Json::parse(&text)).unwrap_or(Json::Null);
        let is = |name| kept.get(name) == Some(&Json::Bool(true));
        let paths = |name| elements(&kept, name).iter().filter_map(Json::text).map(str::to_owned).collect();
        Ok(Memory {
            comment: integer(&kept, "comment"),
            head: string(&kept, "head").to_owned(),
            asked: integer(&kept, "asked").unwrap_or(0),
            findings: elements(&kept, "findings").iter().filter_map(Finding::read).collect(),
            unread: paths("unread"),
            private: paths("private"),
            pending: is("pending"),
            unfinished: is("unfinished"),
            posting: is("posting"),
        })
    }

    pub fn save(&self, services: &mut dyn Services, pull: &str) -> Result<(), Failure> {
        let kept = object(vec![
            ("comment", self.comment.map_or(Json::Null, number)),
            ("head", Json::Text(self.head.clone())),
            ("asked", number(self.asked)),
            ("findings", Json::Array(self.findings.iter().take(MAX_FINDINGS).map(Finding::json).collect())),
            ("unread", bounded(&self.unread)),
            ("private", bounded(&self.private)),
            ("pending", Json::Bool(self.pending)),
            ("unfinished", Json::Bool(self.unfinished)),
            ("posting", Json::Bool(self.posting)),
        ]);
        services.set(&format!("pull/{pull}"), &write(&kept), FORGET_MS)
    }
}

/// Paths, as many as are kept.
fn bounded(paths: &[String]) -> Json {
    let mut room = MAX_PATHS_BYTES;
    let fits = |path: &&String| {
        let fits = path.len() <= room;
        room = room.saturating_sub(path.len());
        fits
    };
    Json::Array(paths.iter().take_while(fits).map(text).collect())
}

/// A lock whose holder is gone is free again after so long.
const HOLD_MS: u64 = 120_000;
/// It is renewed after so long, at the next step.
const RENEW_MS: u64 = 30_000;
/// Who finds it held comes again after so long at most: 60 attempts of that outlast the longest review.
const COME_AGAIN_S: u64 = 45;

/// Takes the lock of a pull request for `run`. It is `run`'s again at once if it had it, since a run that was killed is
/// started anew under its name; should the first one live on, it finds its lock gone, and ends.
pub fn lock<'a>(services: &'a mut dyn Services, pull: &str, run: &str) -> Result<Held<'a>, Failure> {
    let key = format!("lock/{pull}");
    let now = services.now_ms();
    let held = services.get(&key)?;
    let mut parts = held.as_deref().unwrap_or("").splitn(3, ' ');
    let (until, _, holder) = (parts.next().unwrap_or(""), parts.next(), parts.next().unwrap_or(""));
    let wait_ms = if holder == run { 0 } else { until.parse::<u64>().unwrap_or(0).saturating_sub(now) };
    let name = format!("{:016x} {run}", services.random());
    let value = format!("{} {name}", now + HOLD_MS);
    if wait_ms == 0 && services.swap(&key, held.as_deref(), &value)? {
        return Ok(Held { services, key, name, value, renewed_ms: now });
    }
    Err(Failure {
        status: 429,
        retry_after_s: Some((wait_ms / 1000).clamp(1, COME_AGAIN_S)),
        reason: "another review of this pull request is under way".to_owned(),
    })
}

/// The services of who holds a lock: each step renews it, and none is taken once it is another's.
pub struct Held<'a> {
    services: &'a mut dyn Services,
    key: String,
    /// Whose it is: this run of that job, and no other run of it.
    name: String,
    value: String,
    renewed_ms: u64,
}

impl Held<'_> {
    fn renew(&mut self, now_already: bool) -> Result<(), Failure> {
        let now = self.services.now_ms();
        if !now_already && now < self.renewed_ms + RENEW_MS {
            return Ok(());
        }
        let value = format!("{} {}", now + HOLD_MS, self.name);
        if !self.services.swap(&self.key, Some(&self.value), &value)? {
            let reason = "another run of this review has taken over".to_owned();
            return Err(Failure { status: 429, retry_after_s: Some(COME_AGAIN_S), reason });
        }
        self.value = value;
        self.renewed_ms = now;
        Ok(())
    }

    /// Gives it back, if it is still held; if that fails it ends by itself.
    pub fn release(self) {
        if matches!(self.services.get(&self.key), Ok(Some(held)) if held == self.value) {
            let _ = self.services.delete(&self.key);
        }
    }
}

impl Services for Held<'_> {
    fn github(&mut self, method: &str, path: &str, body: &str) -> Result<Reply, Failure> {
        // What changes anything is done by none but the holder.
        self.renew(method != "GET")?;
        self.services.github(method, path, body)
    }

    fn begin(&mut self, path: &str, body: &str) -> Result<Call, Failure> {
        self.renew(false)?;
        self.services.begin(path, body)
    }

    fn poll(&mut self, calls: &[Call], timeout_ms: u64) -> Result<Option<(usize, Reply)>, Failure> {
        self.renew(false)?;
        self.services.poll(calls, timeout_ms.min(RENEW_MS))
    }

    fn get(&mut self, key: &str) -> Result<Option<String>, Failure> {
        self.services.get(key)
    }

    fn set(&mut self, key: &str, value: &str, ttl_ms: u64) -> Result<(), Failure> {
        self.renew(true)?;
        self.services.set(key, value, ttl_ms)
    }

    fn swap(&mut self, key: &str, expected: Option<&str>, value: &str) -> Result<bool, Failure> {
        self.services.swap(key, expected, value)
    }

    fn delete(&mut self, key: &str) -> Result<(), Failure> {
        self.services.delete(key)
    }

    fn now_ms(&mut self) -> u64 {
        self.services.now_ms()
    }

    fn random(&mut self) -> u64 {
        self.services.random()
    }

    fn sleep_ms(&mut self, duration_ms: u64) {
        self.services.sleep_ms(duration_ms);
    }

    fn log(&mut self, line: &str) {
        self.services.log(line);
    }
}
