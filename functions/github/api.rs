// SPDX-License-Identifier: Apache-2.0
//! One request to the GitHub API until it has an answer that means something: tried
//! again where that is safe, waited for where the wait is short, redirects followed.

use faas::json::Json;
use faas::v1::{Error, Outgoing};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often one request is sent at most, when GitHub fails.
const TRIES: u32 = 4;
/// The first pause after a failure; each further one is three times as long.
const FIRST_PAUSE_MS: u64 = 200;
/// A rate limit that is over within so many seconds is waited for here; a longer one
/// is the caller's, who has more patience and holds nothing while it waits.
const PATIENCE_S: u64 = 5;
const MAX_WAITS: u32 = 2;
/// GitHub's advice where a secondary limit says nothing.
const SECONDARY_S: u64 = 60;
const MAX_REDIRECTS: u32 = 3;
/// Kept back of the time limit, to answer with.
const RESERVE_MS: u64 = 500;
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
const MAX_MESSAGE_CHARS: usize = 300;

/// A request: `target` is path and query behind the API's base.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub accept: &'static str,
    pub body: Option<String>,
}

impl Ask {
    pub fn get(target: String) -> Ask {
        Ask { method: "GET", target, accept: "application/vnd.github+json", body: None }
    }

    /// Whether doing it twice does no more than doing it once.
    fn is_idempotent(&self) -> bool {
        self.method != "POST"
    }
}

/// An answer, whole.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body, read as JSON.
    pub fn json(&self) -> Result<Json, Refusal> {
        std::str::from_utf8(&self.body)
            .ok()
            .and_then(Json::parse)
            .ok_or_else(|| Refusal::new(502, "GitHub's answer is not the JSON that was asked for"))
    }

    /// What GitHub says about a failure, without ends of lines, cut.
    fn message(&self) -> String {
        let said = std::str::from_utf8(&self.body).ok().and_then(Json::parse);
        let text = said.as_ref().and_then(|json| json.get("message")).and_then(Json::text).unwrap_or("");
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARS).collect()
    }
}

/// Why there is no answer to pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub error: String,
    pub retry_after_s: Option<u64>,
    /// Whether GitHub may have done it all the same.
    pub uncertain: bool,
}

impl Refusal {
    pub fn new(status: u16, error: impl Into<String>) -> Refusal {
        Refusal { status, error: error.into(), retry_after_s: None, uncertain: false }
    }
}

/// What requests need of the world.
pub trait Wire {
    /// Sends once, to a whole URL.
    fn exchange(&self, url: &str, ask: &Ask) -> Result<Answer, Error>;
    fn sleep_ms(&self, ms: u64);
    /// Seconds since 1970.
    fn unix_s(&self) -> u64;
    /// Until the host ends the function.
    fn left_ms(&self) -> u64;
}

/// GitHub, below the base of its API.
pub struct Api<'a> {
    pub wire: &'a dyn Wire,
    pub base: &'a str,
}

impl Api<'_> {
    /// Sends `ask`, and returns an answer below 300.
    pub fn send(&self, ask: &Ask) -> Result<Answer, Refusal> {
        let (mut tries, mut waits, mut redirects) = (0, 0, 0);
        let mut url = format!("{}{}", self.base, ask.target);
        loop {
            if self.wire.left_ms() <= RESERVE_MS {
                return Err(Refusal::new(504, "the time limit is reached"));
            }
            tries += 1;
            let failed = match self.wire.exchange(&url, ask) {
                Err(error) => unsent(error, ask)?,
                Ok(answer) => match answer.status {
                    200..=299 => return Ok(answer),
                    // Renamed repositories; the method stays, as GitHub asks for.
                    301 | 302 | 307 | 308 if redirects < MAX_REDIRECTS => {
                        redirects += 1;
                        tries -= 1;
                        url = self.elsewhere(&answer)?;
                        continue;
                    }
                    status => match limited(&answer, self.wire.unix_s()) {
                        Some(wait_s) if wait_s <= PATIENCE_S && waits < MAX_WAITS && self.has_ms(wait_s * 1000) => {
                            waits += 1;
                            tries -= 1;
                            self.wire.sleep_ms(wait_s * 1000);
                            continue;
                        }
                        Some(wait_s) => {
                            let error = format!("GitHub's rate limit, for {wait_s} s: {}", answer.message());
                            return Err(Refusal { retry_after_s: Some(wait_s), ..Refusal::new(429, error) });
                        }
                        None if status < 500 => {
                            let status = if status < 400 { 502 } else { status };
                            return Err(Refusal::new(status, format!("GitHub: {} {}", answer.status, answer.message())));
                        }
                        None => Refusal {
                            retry_after_s: seconds(&answer),
                            uncertain: !ask.is_idempotent(),
                            ..Refusal::new(502, format!("GitHub failed: {} {}", answer.status, answer.message()))
                        },
                    },
                },
            };
            let pause_ms = match failed.retry_after_s {
                Some(wait_s) => wait_s * 1000,
                None => FIRST_PAUSE_MS * 3u64.pow(tries - 1),
            };
            if !ask.is_idempotent() || tries >= TRIES || pause_ms > PATIENCE_S * 1000 || !self.has_ms(pause_ms) {
                return Err(Refusal { error: format!("{} (tried {tries} times)", failed.error), ..failed });
            }
            self.wire.sleep_ms(pause_ms);
        }
    }

    fn has_ms(&self, pause_ms: u64) -> bool {
        self.wire.left_ms() > pause_ms + 2 * RESERVE_MS
    }

    /// Where a redirect leads, if that is still below the base: the token goes nowhere else.
    fn elsewhere(&self, answer: &Answer) -> Result<String, Refusal> {
        let url = answer.header("location").unwrap_or("");
        match url.strip_prefix(self.base) {
            Some(rest) if rest.starts_with('/') => Ok(url.to_owned()),
            _ => Err(Refusal::new(502, "GitHub redirects to somewhere that is not its API")),
        }
    }
}

/// What became of a request without an answer; `Err` where trying again is no use.
fn unsent(error: Error, ask: &Ask) -> Result<Refusal, Refusal> {
    let refusal = match error {
        Error::TIMEOUT => Refusal::new(504, "GitHub did not answer in time"),
        Error::FAILED | Error::UNAVAILABLE => Refusal::new(502, "GitHub can't be reached, or hung up"),
        Error::TOO_LARGE => return Err(Refusal::new(502, "GitHub's answer is too large")),
        // The function's log has the reason: the grant, the secret.
        error => return Err(Refusal::new(502, format!("the host did not send the request: {error}"))),
    };
    Ok(Refusal { uncertain: !ask.is_idempotent(), ..refusal })
}

fn seconds(answer: &Answer) -> Option<u64> {
    answer.header("retry-after")?.trim().parse().ok()
}

/// How many seconds a rate limit lasts, when that is what the answer is about.
///
/// Source: docs.github.com, "Rate limits for the REST API", "Exceeding the rate limit".
fn limited(answer: &Answer, now_s: u64) -> Option<u64> {
    if answer.status != 403 && answer.status != 429 {
        return None;
    }
    if let Some(wait_s) = seconds(answer) {
        return Some(wait_s.max(1));
    }
    if answer.header("x-ratelimit-remaining") == Some("0") {
        let reset_s: Option<u64> = answer.header("x-ratelimit-reset").and_then(|text| text.parse().ok());
        return Some(reset_s.map_or(SECONDARY_S, |reset_s| reset_s.saturating_sub(now_s).max(1)));
    }
    let said = answer.message().to_ascii_lowercase();
    let is_limit = answer.status == 429 || said.contains("rate limit") || said.contains("abuse detection");
    is_limit.then(|| SECONDARY_S)
}

/// The host's HTTP and clocks, for one invocation.
pub struct Host {
    begun: Instant,
    deadline_ms: u64,
    timeout_ms: u64,
}

impl Host {
    /// `deadline_ms` is what the invocation has, 0 for no limit; `timeout_ms` what GitHub
    /// has to answer one request.
    pub fn new(deadline_ms: u64, timeout_ms: u64) -> Host {
        let deadline_ms = if deadline_ms == 0 { u64::MAX } else { deadline_ms };
        Host { begun: Instant::now(), deadline_ms, timeout_ms }
    }
}

impl Wire for Host {
    fn exchange(&self, url: &str, ask: &Ask) -> Result<Answer, Error> {
        let timeout_ms = self.timeout_ms.min(self.left_ms().saturating_sub(RESERVE_MS)).max(1);
        let mut request = Outgoing::new(ask.method, url)
            .header("accept", ask.accept)
            .header("user-agent", "faas-github")
            .header("x-github-api-version", "2022-11-28")
            .timeout_ms(timeout_ms);
        if let Some(body) = &ask.body {
            request = request.header("content-type", "application/json").body(body.as_bytes());
        }
        let incoming = request.send()?;
        let head = incoming.head()?;
        let (mut body, mut used) = (vec![0; 65536], 0);
        loop {
            match incoming.read(&mut body[used..])? {
                0 => break,
                more => used += more,
            }
            if used == body.len() {
                if used >= MAX_BODY_BYTES {
                    return Err(Error::TOO_LARGE);
                }
                body.resize(2 * used, 0);
            }
        }
        body.truncate(used);
        let text = |value: Vec<u8>| String::from_utf8(value).unwrap_or_default();
        let headers = head.headers.into_iter().map(|(name, value)| (name, text(value))).collect();
        Ok(Answer { status: head.status, headers, body })
    }

    fn sleep_ms(&self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }

    fn unix_s(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn left_ms(&self) -> u64 {
        self.deadline_ms.saturating_sub(self.begun.elapsed().as_millis() as u64)
    }
}

#[cfg(test)]
pub mod scripted {
    //! A GitHub that answers by a script, and time that passes only while one sleeps.

    use super::*;
    use std::cell::{Cell, RefCell};

    pub const NOW_S: u64 = 1_700_000_000;

    pub fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Result<Answer, Error> {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Ok(Answer { status, headers, body: body.as_bytes().to_vec() })
    }

    pub struct Script {
        answers: RefCell<Vec<Result<Answer, Error>>>,
        pub sent: RefCell<Vec<(String, Ask)>>,
        pub slept_ms: RefCell<Vec<u64>>,
        pub left_ms: Cell<u64>,
    }

    impl Script {
        pub fn new(answers: Vec<Result<Answer, Error>>) -> Script {
            let (sent, slept_ms) = Default::default();
            Script { answers: RefCell::new(answers), sent, slept_ms, left_ms: Cell::new(60_000) }
        }

        pub fn urls(&self) -> Vec<String> {
            self.sent.borrow().iter().map(|(url, _)| url.clone()).collect()
        }
    }

    impl Wire for Script {
        fn exchange(&self, url: &str, ask: &Ask) -> Result<Answer, Error> {
            self.sent.borrow_mut().push((url.to_owned(), ask.clone()));
            self.answers.borrow_mut().remove(0)
        }

        fn sleep_ms(&self, ms: u64) {
            self.slept_ms.borrow_mut().push(ms);
            self.left_ms.set(self.left_ms.get().saturating_sub(ms));
        }

        fn unix_s(&self) -> u64 {
            NOW_S
        }

        fn left_ms(&self) -> u64 {
            self.left_ms.get()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::scripted::{answer, Script, NOW_S};
    use super::*;

    const BASE: &str = "https://api.test";

    fn get() -> Ask {
        Ask::get("/user".to_owned())
    }

    fn post() -> Ask {
        Ask { method: "POST", body: Some("{}".to_owned()), ..get() }
    }

    fn send(script: &Script, ask: &Ask) -> Result<Answer, Refusal> {
        Api { wire: script, base: BASE }.send(ask)
    }

    #[test]
    fn failures_are_tried_again_with_growing_pauses() {
        let script = Script::new(vec![
            answer(502, &[], ""), Err(Error::FAILED), Err(Error::TIMEOUT), answer(200, &[], "{}"),
        ]);
        assert_eq!(send(&script, &get()).unwrap().status, 200);
        assert_eq!(*script.slept_ms.borrow(), [200, 600, 1800]);
    }

    #[test]
    fn it_gives_up_after_four_tries() {
        let script = Script::new(vec![answer(500, &[], "{\"message\": \"oops\"}"); 5]);
        let refusal = send(&script, &get()).unwrap_err();
        assert_eq!((refusal.status, refusal.uncertain), (502, false));
        assert_eq!(refusal.error, "GitHub failed: 500 oops (tried 4 times)");
        assert_eq!(script.urls().len(), 4);
    }

    #[test]
    fn a_post_that_may_have_been_done_is_not_sent_again() {
        for (failure, status) in [(answer(502, &[], ""), 502), (Err(Error::FAILED), 502), (Err(Error::TIMEOUT), 504)] {
            let script = Script::new(vec![failure]);
            let refusal = send(&script, &post()).unwrap_err();
            assert_eq!((refusal.status, refusal.uncertain, script.urls().len()), (status, true, 1));
        }
    }

    #[test]
    fn a_post_that_was_turned_away_is_sent_again() {
        let script = Script::new(vec![answer(429, &[("Retry-After", "2")], ""), answer(201, &[], "{}")]);
        assert_eq!(send(&script, &post()).unwrap().status, 201);
        assert_eq!(*script.slept_ms.borrow(), [2000]);
    }

    #[test]
    fn a_primary_limit_is_told_with_the_seconds_until_its_reset() {
        let reset = (NOW_S + 90).to_string();
        let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset.as_str())];
        let script = Script::new(vec![answer(403, &headers, "{\"message\": \"API rate limit exceeded\"}")]);
        let refusal = send(&script, &get()).unwrap_err();
        assert_eq!((refusal.status, refusal.retry_after_s), (429, Some(90)));
        assert!(script.slept_ms.borrow().is_empty());
    }

    #[test]
    fn a_limit_that_is_nearly_over_is_waited_for_twice_at_most() {
        let reset = (NOW_S + 3).to_string();
        let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset.as_str())];
        let script = Script::new(vec![answer(403, &headers, ""); 3]);
        assert_eq!(send(&script, &get()).unwrap_err().retry_after_s, Some(3));
        assert_eq!(*script.slept_ms.borrow(), [3000, 3000]);
    }

    #[test]
    fn a_secondary_limit_without_a_number_is_a_minute() {
        let said = "{\"message\": \"You have exceeded a secondary rate limit.\"}";
        let script = Script::new(vec![answer(403, &[], said)]);
        let refusal = send(&script, &get()).unwrap_err();
        assert_eq!((refusal.status, refusal.retry_after_s), (429, Some(60)));
    }

    #[test]
    fn what_is_forbidden_for_another_reason_stays_so() {
        let headers = [("x-ratelimit-remaining", "4999")];
        let script = Script::new(vec![answer(403, &headers, "{\"message\": \"Resource not accessible\"}")]);
        assert_eq!(send(&script, &get()).unwrap_err(), Refusal::new(403, "GitHub: 403 Resource not accessible"));
    }

    #[test]
    fn no_wait_reaches_beyond_the_time_limit() {
        let script = Script::new(vec![answer(429, &[("retry-after", "5")], "")]);
        script.left_ms.set(5500);
        assert_eq!(send(&script, &get()).unwrap_err().retry_after_s, Some(5));
        let script = Script::new(vec![answer(500, &[], "")]);
        script.left_ms.set(1100);
        assert_eq!(send(&script, &get()).unwrap_err().status, 502);
        let script = Script::new(vec![]);
        script.left_ms.set(400);
        assert_eq!(send(&script, &get()).unwrap_err().status, 504);
    }

    #[test]
    fn maintenance_says_itself_how_long_it_takes() {
        let script = Script::new(vec![answer(503, &[("retry-after", "120")], "")]);
        let refusal = send(&script, &get()).unwrap_err();
        assert_eq!((refusal.status, refusal.retry_after_s, script.urls().len()), (502, Some(120), 1));
    }

    #[test]
    fn redirects_are_followed_within_the_api_and_nowhere_else() {
        let script = Script::new(vec![
            answer(301, &[("location", "https://api.test/repositories/7")], ""), answer(200, &[], "{}"),
        ]);
        assert_eq!(send(&script, &get()).unwrap().status, 200);
        assert_eq!(script.urls(), ["https://api.test/user", "https://api.test/repositories/7"]);
        for location in ["https://evil.test/", "https://api.test.evil.test/", "https://api.test@evil.test/", "/user", ""] {
            let script = Script::new(vec![answer(302, &[("location", location)], "")]);
            assert_eq!(send(&script, &get()).unwrap_err().status, 502, "{location}");
        }
        let round = answer(302, &[("location", "https://api.test/user")], "");
        let script = Script::new(vec![round; 4]);
        assert_eq!(send(&script, &get()).unwrap_err().status, 502);
    }

    #[test]
    fn what_the_host_refuses_is_not_tried_again() {
        let script = Script::new(vec![Err(Error::DENIED)]);
        let refusal = send(&script, &get()).unwrap_err();
        assert_eq!((refusal.status, refusal.error.as_str()), (502, "the host did not send the request: not granted"));
    }

    #[test]
    fn messages_are_one_line_and_bounded() {
        let said = format!("{{\"message\": \"a\\nb{}\"}}", "x".repeat(1000));
        let script = Script::new(vec![answer(404, &[], &said)]);
        let error = send(&script, &get()).unwrap_err().error;
        assert!(error.starts_with("GitHub: 404 a b") && error.len() < 400);
    }
}
