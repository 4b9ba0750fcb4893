// SPDX-License-Identifier: Apache-2.0
//! chat: POST a conversation, get the answer as server-sent events while it is made.
//!
//! The body is JSON, `{"messages": [{"role": "user", "content": "Hi"}, ...]}`, with
//! `max_tokens` and `temperature` if wanted; or else plain text, which is taken for
//! the one message of a user. Each event is `data: {"text": "..."}`, the last but
//! one has the usage, the last is `data: [DONE]`.
//!
//! A `command`, because its stdout goes out while it runs: waiting for the next
//! token sends what was written before.

use faas::json::Json;
use faas::json_string;
use faas::nn::{chatml, Config, Error, Model};
use std::env;
use std::io::{self, Read, Write};

const USAGE: &str = "\
POST a message to this address to get an answer while it is made:

    curl -N --data-binary 'What is the capital of France?' URL
    curl -N -H 'Content-Type: application/json' URL --data-binary \\
        '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"max_tokens\": 64}'
";

const DEFAULT_MAX_TOKENS: u32 = 256;
const MAX_MAX_TOKENS: f64 = 4096.0;
/// What the model must not go on behind: it would play the other side.
const NEXT_MESSAGE: [&str; 2] = ["<|im_end|>", "<|im_start|>"];

struct Conversation {
    messages: Vec<(String, String)>,
    max_tokens: u32,
    temperature: f64,
}

impl Conversation {
    /// Reads a request body; the error is for the client.
    fn parse(body: &str) -> Result<Conversation, &'static str> {
        let mut conversation =
            Conversation { messages: Vec::new(), max_tokens: DEFAULT_MAX_TOKENS, temperature: 0.0 };
        let text = body.trim();
        if text.is_empty() {
            return Err("the body is empty; send a message");
        }
        if !text.starts_with('{') {
            conversation.messages.push(("user".into(), text.into()));
            return Ok(conversation);
        }
        let json = Json::parse(text).ok_or("the body begins like JSON but is not")?;
        let messages = json.get("messages").and_then(Json::array).ok_or("\"messages\" must be an array")?;
        for message in messages {
            let role = message.get("role").and_then(Json::text).ok_or("a message needs a \"role\"")?;
            let content =
                message.get("content").and_then(Json::text).ok_or("a message needs a \"content\"")?;
            if !matches!(role, "system" | "user" | "assistant") {
                return Err("a role is system, user or assistant");
            }
            conversation.messages.push((role.into(), content.into()));
        }
        if conversation.messages.is_empty() {
            return Err("\"messages\" is empty");
        }
        if let Some(value) = json.get("max_tokens") {
            conversation.max_tokens = match value.number() {
                Some(number) if (1.0..=MAX_MAX_TOKENS).contains(&number) => number as u32,
                _ => return Err("\"max_tokens\" must be a number from 1 to 4096"),
            };
        }
        if let Some(value) = json.get("temperature") {
            conversation.temperature = match value.number() {
                Some(number) if (0.0..=2.0).contains(&number) => number,
                _ => return Err("\"temperature\" must be a number from 0 to 2"),
            };
        }
        Ok(conversation)
    }

    /// The template of the model, without its default system prompt: small models
    /// answer worse with it.
    fn prompt(&self) -> String {
        let messages: Vec<(&str, &str)> =
            self.messages.iter().map(|(role, content)| (role.as_str(), content.as_str())).collect();
        chatml(&messages)
    }
}

fn refuse(status: &str, headers: &str, message: &str) {
    print!("Status: {status}\nContent-Type: application/json\n{headers}\n");
    println!("{{\"error\":{}}}", json_string(message));
}

fn refuse_for(error: Error) {
    let (status, headers) = match error {
        Error::BUSY => ("503 Service Unavailable", "Retry-After: 1\n"),
        Error::PROMPT_TOO_LONG | Error::TOO_LARGE => ("413 Content Too Large", ""),
        Error::INVALID_ARGUMENT => ("400 Bad Request", ""),
        _ => ("500 Internal Server Error", ""),
    };
    refuse(status, headers, &error.to_string());
}

fn event(data: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "data: {data}\n\n")?;
    out.flush()
}

fn answer(conversation: &Conversation) -> Result<(), Error> {
    let model = Model::load("default")?;
    model.config(&Config::new().float("temp", conversation.temperature))?;
    let mut pieces = model.stream(&conversation.prompt())?.peekable();
    // An error before the first token can still have a status of its own.
    if let Some(Err(error)) = pieces.peek() {
        return Err(*error);
    }
    print!("Content-Type: text/event-stream\nCache-Control: no-store\n\n");
    let mut left = conversation.max_tokens;
    let mut failure = None;
    for piece in &mut pieces {
        match piece {
            Ok(text) if NEXT_MESSAGE.iter().any(|mark| text.contains(mark)) => break,
            Ok(text) => {
                if event(&format!("{{\"text\":{}}}", json_string(&text))).is_err() {
                    return Ok(()); // nobody listens any more
                }
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
        left -= 1;
        if left == 0 {
            break;
        }
    }
    let usage = model.usage().unwrap_or_default();
    let end = match failure {
        Some(error) => format!("{{\"error\":{}}}", json_string(&error.to_string())),
        None => format!(
            "{{\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{}}}}}",
            usage.input_tokens, usage.output_tokens
        ),
    };
    let _ = event(&end).and_then(|()| event("[DONE]"));
    Ok(())
}

fn main() {
    if env::var("REQUEST_METHOD").map_or(false, |method| method != "POST") {
        print!("Content-Type: text/plain; charset=utf-8\n\n{USAGE}");
        return;
    }
    let mut body = Vec::new();
    if io::stdin().read_to_end(&mut body).is_err() {
        return refuse("400 Bad Request", "", "the body can't be read");
    }
    let body = match String::from_utf8(body) {
        Ok(body) => body,
        Err(_) => return refuse("400 Bad Request", "", "the body is not UTF-8"),
    };
    match Conversation::parse(&body) {
        Ok(conversation) => {
            if let Err(error) = answer(&conversation) {
                refuse_for(error);
            }
        }
        Err(message) => refuse("400 Bad Request", "", message),
    }
}
