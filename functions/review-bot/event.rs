// SPDX-License-Identifier: Apache-2.0
//! Which of GitHub's events ask for a review. Whom and what a review goes to is taken from here, and from nowhere else.

use crate::json_out::{integer, string};
use faas::json::Json;

/// Why a review was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The pull request was opened, reopened, pushed to, or made ready; its last commit then, if that was said.
    Pushed { head: String },
    /// Somebody wrote the trigger phrase, in the comment of that id.
    Asked { comment: u64, user: String },
}

/// The pull request that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub owner: String,
    pub repo: String,
    pub number: u64,
    pub cause: Cause,
}

impl Target {
    /// `/repos/OWNER/REPO`, as paths of the API begin.
    pub fn base(&self) -> String {
        format!("/repos/{}/{}", self.owner, self.repo)
    }

    /// `OWNER/REPO/NUMBER`, for keys.
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.owner.to_lowercase(), self.repo.to_lowercase(), self.number)
    }
}

/// What is to be done about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Review(Target),
    /// Nothing, and why.
    Nothing(&'static str),
}

/// Reads an event. Who may ask by a comment is not decided here: that takes GitHub's word.
pub fn read(event: &str, payload: &Json, trigger: &str) -> Wanted {
    match event {
        "pull_request" => pushed(payload),
        "issue_comment" => asked(payload, trigger),
        "ping" => Wanted::Nothing("ping"),
        _ => Wanted::Nothing("another event"),
    }
}

fn pushed(payload: &Json) -> Wanted {
    if !matches!(string(payload, "action"), "opened" | "synchronize" | "ready_for_review" | "reopened") {
        return Wanted::Nothing("another action");
    }
    let pull = match payload.get("pull_request") {
        Some(pull) => pull,
        None => return Wanted::Nothing("no pull request in it"),
    };
    if pull.get("draft") == Some(&Json::Bool(true)) {
        return Wanted::Nothing("a draft");
    }
    let head = pull.get("head").map_or("", |head| string(head, "sha")).to_owned();
    target(payload, integer(pull, "number"), Cause::Pushed { head })
}

fn asked(payload: &Json, trigger: &str) -> Wanted {
    if string(payload, "action") != "created" {
        return Wanted::Nothing("another action");
    }
    let (issue, comment) = match (payload.get("issue"), payload.get("comment")) {
        (Some(issue), Some(comment)) => (issue, comment),
        _ => return Wanted::Nothing("no comment in it"),
    };
    if !matches!(issue.get("pull_request"), Some(Json::Object(_))) {
        return Wanted::Nothing("not about a pull request");
    }
    if !begins_with(string(comment, "body"), trigger) {
        return Wanted::Nothing("without the trigger phrase");
    }
    let user = match comment.get("user") {
        Some(user) => user,
        None => return Wanted::Nothing("a comment of nobody"),
    };
    let login = string(user, "login");
    if string(user, "type") == "Bot" || login.ends_with("[bot]") {
        return Wanted::Nothing("a bot's comment");
    }
    let id = integer(comment, "id").filter(|_| is_name(login));
    match id {
        Some(comment) => target(payload, integer(issue, "number"), Cause::Asked { comment, user: login.to_owned() }),
        None => Wanted::Nothing("a comment of nobody"),
    }
}

/// Whether a comment begins with the phrase, in any letter case, and the phrase ends there.
fn begins_with(body: &str, trigger: &str) -> bool {
    let mut body = body.trim_start().chars();
    for wanted in trigger.chars() {
        match body.next() {
            Some(c) if c.to_lowercase().eq(wanted.to_lowercase()) => {}
            _ => return false,
        }
    }
    !trigger.is_empty() && !body.next().map_or(false, |c| c.is_alphanumeric() || c == '_' || c == '-')
}

fn target(payload: &Json, number: Option<u64>, cause: Cause) -> Wanted {
    let full_name = payload.get("repository").map_or("", |repository| string(repository, "full_name"));
    match (full_name.split_once('/'), number) {
        (Some((owner, repo)), Some(number)) if is_name(owner) && is_name(repo) && number > 0 => {
            Wanted::Review(Target { owner: owner.to_owned(), repo: repo.to_owned(), number, cause })
        }
        _ => Wanted::Nothing("no repository or number in it"),
    }
}

/// Whether it can be a segment of a path as it is.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=100).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(action: &str, draft: bool) -> Json {
        Json::parse(&format!(
            r#"{{"action":"{action}","pull_request":{{"number":7,"draft":{draft},"head":{{"sha":"abc"}}}},
                "repository":{{"full_name":"Ann/re.po"}}}}"#
        ))
        .unwrap()
    }

    fn comment(body: &str, user: &str, issue: &str) -> Json {
        let body = faas::json_string(body);
        Json::parse(&format!(
            r#"{{"action":"created","issue":{issue},"comment":{{"id":5,"body":{body},"user":{user}}},
                "repository":{{"full_name":"ann/repo"}}}}"#
        ))
        .unwrap()
    }

    const ISSUE: &str = r#"{"number":7,"pull_request":{}}"#;
    const USER: &str = r#"{"login":"bob","type":"User"}"#;

    #[test]
    fn pull_requests_are_reviewed_when_there_is_something_new() {
        for action in ["opened", "synchronize", "ready_for_review", "reopened"] {
            let target = match read("pull_request", &pull(action, false), "/review") {
                Wanted::Review(target) => target,
                nothing => panic!("{action}: {nothing:?}"),
            };
            assert_eq!((target.base().as_str(), target.key().as_str()), ("/repos/Ann/re.po", "ann/re.po/7"));
            assert_eq!(target.cause, Cause::Pushed { head: "abc".to_owned() });
        }
        for action in ["closed", "labeled", "edited", ""] {
            assert_eq!(read("pull_request", &pull(action, false), "/review"), Wanted::Nothing("another action"));
        }
        assert_eq!(read("pull_request", &pull("opened", true), "/review"), Wanted::Nothing("a draft"));
        assert_eq!(read("push", &pull("opened", false), "/review"), Wanted::Nothing("another event"));
        assert_eq!(read("ping", &Json::Null, "/review"), Wanted::Nothing("ping"));
    }

    #[test]
    fn the_phrase_asks_in_any_letter_case() {
        for body in ["/review", "/REVIEW please", "  \n/Review\nnow", "/review: all"] {
            let wanted = read("issue_comment", &comment(body, USER, ISSUE), "/review");
            assert!(matches!(wanted, Wanted::Review(Target { cause: Cause::Asked { comment: 5, .. }, .. })), "{body}");
        }
        let wanted = read("issue_comment", &comment("\u{c4}RGER", USER, ISSUE), "\u{e4}rger");
        assert!(matches!(wanted, Wanted::Review(_)));
        for body in ["please /review", "/reviewer", "/review-not", "/revie", "", "> /review"] {
            let wanted = read("issue_comment", &comment(body, USER, ISSUE), "/review");
            assert_eq!(wanted, Wanted::Nothing("without the trigger phrase"), "{body}");
        }
        assert!(matches!(read("issue_comment", &comment("x", USER, ISSUE), ""), Wanted::Nothing(_)));
    }

    #[test]
    fn comments_of_bots_and_on_issues_ask_for_nothing() {
        for (user, issue) in [
            (r#"{"login":"x","type":"Bot"}"#, ISSUE),
            (r#"{"login":"x[bot]","type":"User"}"#, ISSUE),
            (r#"{"login":"a/../b","type":"User"}"#, ISSUE),
            ("null", ISSUE),
            (USER, r#"{"number":7}"#),
        ] {
            let wanted = read("issue_comment", &comment("/review", user, issue), "/review");
            assert!(matches!(wanted, Wanted::Nothing(_)), "{user} {issue}: {wanted:?}");
        }
    }

    #[test]
    fn names_that_are_no_segments_of_a_path_are_refused() {
        for name in ["a", "/b", "a/", "a/b/c", "../x", "a/..", "a b/c", "a/b?x", ""] {
            let text = r#"{"action":"opened","pull_request":{"number":7},"repository":{"full_name":"NAME"}}"#;
            let payload = Json::parse(&text.replace("NAME", name)).unwrap();
            assert!(matches!(read("pull_request", &payload, "/review"), Wanted::Nothing(_)), "{name}");
        }
    }
}
