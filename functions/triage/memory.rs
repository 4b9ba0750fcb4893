// SPDX-License-Identifier: Apache-2.0
//! What is remembered, in the function's own store: `verdict/ID` for each ticket, and what was done already.

use crate::classify::Verdict;
use crate::Failure;
use faas::json_string;
use faas::v1::Store;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

const WEEK_MS: u64 = 7 * 24 * 3_600_000;
/// More than the 5 s that the chat has for its answer.
const CLAIM_MS: u64 = 20_000;

pub struct Memory {
    store: Store,
}

impl Memory {
    pub fn open() -> Result<Memory, Failure> {
        Ok(Memory { store: Store::open("default")? })
    }

    pub fn verdict(&self, id: &str) -> Result<Option<Verdict>, Failure> {
        let kept = self.store.get(&format!("verdict/{id}"))?;
        Ok(kept.and_then(|bytes| Verdict::parse(&String::from_utf8_lossy(&bytes))))
    }

    pub fn keep(&self, id: &str, verdict: &Verdict) -> Result<(), Failure> {
        Ok(self.store.set(&format!("verdict/{id}"), verdict.json().as_bytes())?)
    }

    /// Does what was not done under this name within a week. Who begins claims it, so that of two
    /// runs side by side one acts, and the other fails and comes again. The claim of a run that ended
    /// with its host is over after 20 s: then it may be said twice, which is better than never.
    pub fn once(&self, name: &str, act: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let known = self.store.get(name)?;
        if known.as_deref() == Some(b"done") {
            return Ok(());
        }
        let until = known.as_deref().and_then(|claim| std::str::from_utf8(claim).ok()?.parse().ok()).unwrap_or(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let claim = (now + CLAIM_MS).to_string();
        if now < until || !self.store.compare_and_set(name, known.as_deref(), claim.as_bytes())? {
            return Err(Failure::new(503, format!("{name}: another run is at it")));
        }
        if let Err(failure) = act() {
            self.store.delete(name)?; // so that the next run need not wait
            return Err(failure);
        }
        Ok(self.store.set_for(name, b"done", WEEK_MS)?)
    }

    /// All tickets with their verdicts, as one JSON object.
    pub fn all(&self) -> Result<String, Failure> {
        let mut members = Vec::new();
        self.each(|id, verdict| members.push(format!("{}:{}", json_string(id), verdict.json())))?;
        Ok(format!("{{{}}}", members.join(",\n ")))
    }

    /// How many tickets there are of each category, in one line.
    pub fn digest(&self) -> Result<String, Failure> {
        let mut counts = BTreeMap::new();
        self.each(|_, verdict| *counts.entry(verdict.category).or_insert(0) += 1)?;
        let counts: Vec<String> = counts.iter().map(|(category, count)| format!("{category}: {count}")).collect();
        Ok(format!("tickets so far: {}", counts.join(", ")))
    }

    fn each(&self, mut visit: impl FnMut(&str, Verdict)) -> Result<(), Failure> {
        let mut cursor = String::new();
        loop {
            let (keys, next) = self.store.list("verdict/", &cursor, 100)?;
            for id in keys.iter().filter_map(|key| key.strip_prefix("verdict/")) {
                if let Some(verdict) = self.verdict(id)? {
                    visit(id, verdict);
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            cursor = next;
        }
    }
}
