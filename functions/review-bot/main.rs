// SPDX-License-Identifier: Apache-2.0
//! A bot that reviews pull requests: GitHub's webhook in, one comment out. It knows neither tokens nor URLs: `github`
//! and `llm` do, which it calls. ../README.md has its settings.

#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]

mod changes;
mod comment;
mod diff;
mod event;
mod files;
mod findings;
mod json_out;
mod memory;
mod pack;
mod prompt;
mod review;
#[cfg(test)]
mod scripted;
mod services;
mod skip;
mod tools;

use faas::json::Json;
use faas::v1::{config, wait_any, Error, Incoming, Outgoing, Store};
use faas::{Request, Response};
use review::{serve, Delivery, Settings};
use services::{Call, Failure, Reply, Services};
use skip::Patterns;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The host itself.
struct Live {
    store: Store,
    running: Vec<(Call, Incoming)>,
    next: Call,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(format!("the host: {error}"))
    }
}

fn called(function: &str, error: Error) -> Failure {
    let next = match error {
        Error::NOT_FOUND => ": deploy it",
        Error::DENIED => ": name it in [capabilities] calls",
        _ => "",
    };
    Failure::new(format!("{function}: {error}{next}"))
}

fn reply(function: &str, incoming: &Incoming) -> Result<Reply, Failure> {
    let head = incoming.head().map_err(|error| called(function, error))?;
    let body = incoming.body().map_err(|error| called(function, error))?;
    let json = std::str::from_utf8(&body).ok().and_then(Json::parse).unwrap_or(Json::Null);
    let retry_after_s = head.header("retry-after").and_then(|value| value.trim().parse().ok());
    Ok(Reply { status: head.status, retry_after_s, json })
}

fn outgoing<'a>(function: &'a str, method: &'a str, path: &'a str, body: &'a str) -> Outgoing<'a> {
    let outgoing = Outgoing::to(function, method, path);
    if body.is_empty() {
        outgoing
    } else {
        outgoing.header("content-type", "application/json").body(body.as_bytes())
    }
}

impl Services for Live {
    fn github(&mut self, method: &str, path: &str, body: &str) -> Result<Reply, Failure> {
        let incoming = outgoing("github", method, path, body).call().map_err(|error| called("github", error))?;
        reply("github", &incoming)
    }

    fn begin(&mut self, path: &str, body: &str) -> Result<Call, Failure> {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let incoming = outgoing("llm", method, path, body).call().map_err(|error| called("llm", error))?;
        self.next += 1;
        self.running.push((self.next, incoming));
        Ok(self.next)
    }

    fn poll(&mut self, calls: &[Call], timeout_ms: u64) -> Result<Option<(usize, Reply)>, Failure> {
        let of = |call: &Call| self.running.iter().position(|(running, _)| running == call).expect("it is under way");
        let waiting: Vec<&Incoming> = calls.iter().map(|call| &self.running[of(call)].1).collect();
        let first = match wait_any(&waiting, Some(timeout_ms)) {
            Err(Error::TIMEOUT) => return Ok(None),
            first => first?,
        };
        let at = of(&calls[first]);
        let (_, incoming) = self.running.remove(at);
        Ok(Some((first, reply("llm", &incoming)?)))
    }

    fn get(&mut self, key: &str) -> Result<Option<String>, Failure> {
        Ok(self.store.get(key)?.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    fn set(&mut self, key: &str, value: &str, ttl_ms: u64) -> Result<(), Failure> {
        Ok(self.store.set_for(key, value.as_bytes(), ttl_ms)?)
    }

    fn swap(&mut self, key: &str, expected: Option<&str>, value: &str) -> Result<bool, Failure> {
        Ok(self.store.compare_and_set(key, expected.map(str::as_bytes), value.as_bytes())?)
    }

    fn delete(&mut self, key: &str) -> Result<(), Failure> {
        self.store.delete(key)?;
        Ok(())
    }

    fn now_ms(&mut self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn random(&mut self) -> u64 {
        // Keyed by the host's random numbers, anew in each instance.
        RandomState::new().build_hasher().finish()
    }

    fn sleep_ms(&mut self, duration_ms: u64) {
        std::thread::sleep(Duration::from_millis(duration_ms));
    }

    fn log(&mut self, line: &str) {
        eprintln!("{line}");
    }
}

/// A config value that is a number in its range.
fn number(name: &str, default: u64, range: std::ops::RangeInclusive<u64>) -> Result<u64, Failure> {
    let said = match config(name)? {
        None => return Ok(default),
        Some(said) => said,
    };
    match said.trim().parse() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(Failure::new(format!(
            "{name} is a number from {} to {}: faas config set review-bot {name}={default}",
            range.start(),
            range.end()
        ))),
    }
}

fn settings() -> Result<Settings, Failure> {
    let own = config("BOT_TRIGGER")?.map(|trigger| trigger.trim().to_owned());
    Ok(Settings {
        trigger: own.filter(|trigger| !trigger.is_empty()).unwrap_or_else(|| "/review".to_owned()),
        login: config("BOT_LOGIN")?.map(|login| login.trim().to_owned()).filter(|login| !login.is_empty()),
        patterns: Patterns::new(&config("SKIP")?.unwrap_or_default()),
        max_findings: number("MAX_FINDINGS", 20, 1..=200)? as usize,
        part_tokens: number("CHUNK_TOKENS", 1500, 100..=100_000)?,
        max_calls: number("MAX_CALLS", 24, 1..=1000)?,
        max_tokens: number("MAX_TOKENS", 60_000, 1000..=10_000_000)?,
        parallel: number("PARALLEL", 4, 1..=32)? as usize,
        tool_rounds: number("TOOL_ROUNDS", 1, 0..=5)?,
    })
}

fn webhook(request: &Request) -> Response {
    let failed = |failure: Failure| Response::json(error(&failure.reason)).with_status(failure.status);
    let payload = match std::str::from_utf8(request.body) {
        Ok(payload) => payload,
        Err(_) => return Response::json(error("the payload is not UTF-8")).with_status(400),
    };
    let (settings, store) = match (settings(), Store::open("default")) {
        (Ok(settings), Ok(store)) => (settings, store),
        (Err(failure), _) => return failed(failure),
        (_, Err(problem)) => return failed(problem.into()),
    };
    let mut live = Live { store, running: Vec::new(), next: 0 };
    let delivery = Delivery {
        event: request.header("x-github-event").unwrap_or(""),
        payload,
        run: request.header("x-faas-job").unwrap_or(request.request_id),
        attempt: request.header("x-faas-attempt").and_then(|attempt| attempt.parse().ok()).unwrap_or(1),
        left_ms: request.deadline_ms,
    };
    let outcome = serve(&mut live, &settings, &delivery);
    let response = Response::json(json_out::write(&outcome.json)).with_status(outcome.status);
    match outcome.retry_after_s {
        Some(seconds) => response.header("retry-after", seconds.to_string()),
        None => response,
    }
}

fn error(reason: &str) -> String {
    json_out::write(&json_out::object(vec![("error", json_out::text(reason))]))
}

faas::handler!(webhook);
