// SPDX-License-Identifier: Apache-2.0
//! What is asked and answered, whichever model does it.

use crate::write::write;
use faas::json::Json;
use faas::{json_string, Response};

/// How many tokens an answer may have where the request does not say.
const MAX_TOKENS: u32 = 512;
const MAX_MAX_TOKENS: f64 = 65536.0;
/// Seeds are 32 bits for the resident models, and the last one means "random" there.
const MAX_SEED: f64 = 4_294_967_294.0;

/// Why there is no answer; becomes `{"error", "status"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub message: String,
    /// Seconds, where asking again makes sense.
    pub retry_after: Option<u64>,
}

impl Refusal {
    pub fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), retry_after: None }
    }

    pub fn retry(status: u16, seconds: u64, message: impl Into<String>) -> Refusal {
        Refusal { retry_after: Some(seconds), ..Refusal::new(status, message) }
    }

    pub fn response(&self) -> Response {
        let body = format!("{{\"error\":{},\"status\":{}}}", json_string(&self.message), self.status);
        let response = Response::json(body).with_status(self.status);
        match self.retry_after {
            Some(seconds) => response.header("retry-after", seconds.to_string()),
            None => response,
        }
    }
}

/// (role, content)
pub type Message = (String, String);

#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    pub messages: Vec<Message>,
    pub max_tokens: u32,
    pub temperature: f64,
    pub seed: Option<u32>,
    pub schema: Option<Json>,
}

/// A model, wherever it is.
pub trait Backend {
    fn chat(&self, chat: &Chat) -> Result<Answer, Refusal>;
    fn count(&self, texts: &[&str]) -> Result<Counted, Refusal>;
    /// The whole prompt that these messages become.
    fn count_messages(&self, messages: &[Message]) -> Result<Counted, Refusal>;
    fn embed(&self, texts: &[&str]) -> Result<Embedded, Refusal>;
    fn card(&self) -> Result<Card, Refusal>;
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub text: String,
    pub model: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// The text ends where it does because there was no more room.
    pub is_cut: bool,
}

impl Answer {
    pub fn json(&self, duration_ms: u128) -> String {
        format!(
            "{{\"text\":{},\"model\":{},\"prompt_tokens\":{},\"completion_tokens\":{},\"duration_ms\":{},\"finish\":\"{}\"}}",
            json_string(&self.text),
            json_string(&self.model),
            self.prompt_tokens,
            self.completion_tokens,
            duration_ms,
            if self.is_cut { "length" } else { "stop" }
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    pub tokens: Vec<u64>,
    pub exact: bool,
}

impl Counted {
    pub fn json(&self) -> String {
        let tokens: Vec<String> = self.tokens.iter().map(u64::to_string).collect();
        format!("{{\"tokens\":[{}],\"exact\":{}}}", tokens.join(","), self.exact)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    pub model: String,
}

impl Embedded {
    pub fn json(&self) -> String {
        let mut rows = String::new();
        for vector in &self.vectors {
            let values: Vec<String> = vector.iter().map(f32::to_string).collect();
            rows.push_str(if rows.is_empty() { "[" } else { ",[" });
            rows.push_str(&values.join(","));
            rows.push(']');
        }
        let dimensions = self.vectors.first().map_or(0, Vec::len);
        format!("{{\"vectors\":[{rows}],\"model\":{},\"dimensions\":{dimensions}}}", json_string(&self.model))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    pub model: String,
    /// Of prompt and answer together.
    pub context_tokens: u64,
    pub resident: bool,
}

impl Card {
    pub fn json(&self) -> String {
        format!(
            "{{\"model\":{},\"context_tokens\":{},\"resident\":{}}}",
            json_string(&self.model),
            self.context_tokens,
            self.resident
        )
    }
}

fn wrong<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(400, message))
}

/// The object that a request's body is.
pub fn body(bytes: &[u8]) -> Result<Json, Refusal> {
    let json = std::str::from_utf8(bytes).ok().and_then(Json::parse);
    match json {
        Some(object @ Json::Object(_)) => Ok(object),
        Some(_) => wrong("the body is JSON, but not an object; send {\"messages\": [...]} or {\"texts\": [...]}"),
        None => wrong("the body is not JSON; send an object as application/json"),
    }
}

pub fn messages(body: &Json) -> Result<Vec<Message>, Refusal> {
    let list = match body.get("messages").and_then(Json::array) {
        Some([]) => return wrong("\"messages\" is empty; send at least one"),
        Some(list) => list,
        None => return wrong("\"messages\" has to be an array of {\"role\", \"content\"}"),
    };
    let mut messages = Vec::with_capacity(list.len());
    for (index, message) in list.iter().enumerate() {
        let role = match message.get("role").and_then(Json::text) {
            Some(role @ ("system" | "user" | "assistant")) => role,
            _ => return wrong(format!("messages[{index}].role has to be system, user or assistant")),
        };
        let content = match message.get("content").and_then(Json::text) {
            Some(content) => content,
            None => return wrong(format!("messages[{index}].content has to be a string")),
        };
        messages.push((role.to_owned(), content.to_owned()));
    }
    Ok(messages)
}

pub fn texts(body: &Json, most: usize) -> Result<Vec<&str>, Refusal> {
    let list = match body.get("texts").and_then(Json::array) {
        Some(list) if (1..=most).contains(&list.len()) => list,
        _ => return wrong(format!("\"texts\" has to be an array of 1 to {most} strings")),
    };
    match list.iter().map(Json::text).collect() {
        Some(texts) => Ok(texts),
        None => wrong("\"texts\" has something in it that is no string"),
    }
}

/// A number that is set and within the range; null is as if it were not there.
fn number(body: &Json, name: &str, low: f64, high: f64, whole: bool) -> Result<Option<f64>, Refusal> {
    match body.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(value)) if (low..=high).contains(value) && !(whole && value.fract() != 0.0) => {
            Ok(Some(*value))
        }
        Some(_) => wrong(format!(
            "\"{name}\" has to be {} from {low} to {high}",
            if whole { "a whole number" } else { "a number" }
        )),
    }
}

impl Chat {
    pub fn parse(body: &Json) -> Result<Chat, Refusal> {
        let schema = match body.get("schema") {
            None | Some(Json::Null) => None,
            Some(schema @ Json::Object(_)) => Some(schema.clone()),
            Some(_) => return wrong("\"schema\" has to be a JSON schema, as an object"),
        };
        Ok(Chat {
            messages: messages(body)?,
            max_tokens: number(body, "max_tokens", 1.0, MAX_MAX_TOKENS, true)?.map_or(MAX_TOKENS, |n| n as u32),
            temperature: number(body, "temperature", 0.0, 2.0, false)?.unwrap_or(0.0),
            seed: number(body, "seed", 0.0, MAX_SEED, true)?.map(|n| n as u32),
            schema,
        })
    }

    pub fn schema_text(&self) -> Option<String> {
        self.schema.as_ref().map(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_greedy_and_bounded() {
        let body = Json::parse(r#"{"messages":[{"role":"user","content":"x"}],"seed":null,"later":1}"#).unwrap();
        let chat = Chat::parse(&body).unwrap();
        assert_eq!((chat.max_tokens, chat.temperature, chat.seed, chat.schema), (512, 0.0, None, None));
    }

    #[test]
    fn answers_are_json() {
        let answer = Answer {
            text: "a\"b".into(), model: "m".into(), prompt_tokens: 1, completion_tokens: 2, is_cut: false,
        };
        let json = Json::parse(&answer.json(7)).unwrap();
        assert_eq!(json.get("text").and_then(Json::text), Some("a\"b"));
        assert_eq!(json.get("duration_ms").and_then(Json::number), Some(7.0));
        let embedded = Embedded { vectors: vec![vec![0.5, -1e-9], vec![1.0, 0.0]], model: "m".into() };
        let json = Json::parse(&embedded.json()).unwrap();
        assert_eq!(json.get("dimensions").and_then(Json::number), Some(2.0));
        assert_eq!(json.get("vectors").and_then(Json::array).unwrap()[1].array().unwrap()[0].number(), Some(1.0));
        let response = Refusal::retry(503, 5, "busy").response();
        assert_eq!(response.body, br#"{"error":"busy","status":503}"#);
        assert!(response.headers.contains(&("retry-after".into(), "5".into())));
    }
}
