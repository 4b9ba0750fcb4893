// SPDX-License-Identifier: Apache-2.0
//! What is kept of a pull request between reviews, and the lock that keeps two of them apart.

use crate::findings::Finding;
use crate::json_out::{elements, integer, number, object, string, write};
use crate::services::{Failure, Services};
use faas::json::Json;

/// More findings than that are not remembered.
const MAX_FINDINGS: usize = 200;

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
    /// The review is done and kept, but perhaps not in the comment yet.
    pub pending: bool,
}

impl Memory {
    pub fn load(services: &mut dyn Services, pull: &str) -> Result<Memory, Failure> {
        let kept = services.get(&format!("pull/{pull}"))?.and_then(|text| Json::parse(&text)).unwrap_or(Json::Null);
        Ok(Memory {
            comment: integer(&kept, "comment"),
            head: string(&kept, "head").to_owned(),
            asked: integer(&kept, "asked").unwrap_or(0),
            findings: elements(&kept, "findings").iter().filter_map(Finding::read).collect(),
            pending: kept.get("pending") == Some(&Json::Bool(true)),
        })
    }

    pub fn save(&self, services: &mut dyn Services, pull: &str) -> Result<(), Failure> {
        let kept = object(vec![
            ("comment", self.comment.map_or(Json::Null, number)),
            ("head", Json::Text(self.head.clone())),
            ("asked", number(self.asked)),
            ("findings", Json::Array(self.findings.iter().take(MAX_FINDINGS).map(Finding::json).collect())),
            ("pending", Json::Bool(self.pending)),
        ]);
        services.set(&format!("pull/{pull}"), &write(&kept), 0)
    }
}

/// Takes the lock of a pull request for `run`, for so long at most; it is `run`'s again if it had it, since a run that
/// was killed is started anew under its name.
pub fn lock(services: &mut dyn Services, pull: &str, run: &str, hold_ms: u64) -> Result<Lock, Failure> {
    let key = format!("lock/{pull}");
    let now = services.now_ms();
    let value = format!("{} {run}", now + hold_ms);
    let held = services.get(&key)?;
    let wait_ms = match held.as_deref().and_then(|held| held.split_once(' ')) {
        Some((until, holder)) if holder != run => until.parse::<u64>().unwrap_or(0).saturating_sub(now),
        _ => 0,
    };
    if wait_ms == 0 && services.swap(&key, held.as_deref(), &value)? {
        return Ok(Lock { key, value });
    }
    Err(Failure {
        status: 429,
        retry_after_s: Some((wait_ms / 1000).clamp(1, 10)),
        reason: "another review of this pull request is under way".to_owned(),
    })
}

/// A lock that is held.
#[derive(Debug)]
pub struct Lock {
    key: String,
    value: String,
}

impl Lock {
    /// Gives it back, if it is still held; if that fails it ends by itself.
    pub fn release(self, services: &mut dyn Services) {
        if matches!(services.get(&self.key), Ok(Some(held)) if held == self.value) {
            let _ = services.delete(&self.key);
        }
    }
}
