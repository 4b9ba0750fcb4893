// SPDX-License-Identifier: Apache-2.0
//! llm: any language model behind one small contract, for the other functions of the host.
//!
//!     POST /chat   {"messages", "max_tokens", "temperature", "schema", "seed"}
//!     POST /count  {"texts"} or {"messages"}
//!     POST /embed  {"texts"}
//!     GET  /model
//!
//! The model is a resident one, through WASI-NN (config `LLM_MODEL`, `default` unless
//! set), or that of an OpenAI-compatible endpoint (config `LLM_URL` and
//! `LLM_REMOTE_MODEL`; the host adds the key). Who calls can't tell them apart.
//!
//! A reactor: called in memory, it costs next to nothing beside the model.

mod contract;
mod remote;
mod resident;
mod schema;
mod write;

use contract::{Backend, Chat, Refusal};
use faas::v1::config;
use faas::{Request, Response};
use std::time::Instant;

const MAX_TEXTS: usize = 4096;
const MAX_EMBEDDED_TEXTS: usize = 256;

/// A config value that is set to something.
fn setting(name: &str) -> Result<Option<String>, Refusal> {
    let value = config(name).map_err(|error| Refusal::retry(503, 5, format!("the config can't be read: {error}")))?;
    Ok(value.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
}

fn backend(started: Instant, deadline_ms: u64) -> Result<Box<dyn Backend>, Refusal> {
    match setting("LLM_URL")? {
        Some(url) => {
            let model = setting("LLM_REMOTE_MODEL")?.ok_or_else(|| {
                Refusal::new(500, "LLM_URL is set and LLM_REMOTE_MODEL is not; name the endpoint's model there")
            })?;
            let embed_model = setting("LLM_EMBED_MODEL")?.unwrap_or_else(|| model.clone());
            let context_tokens = match setting("LLM_CONTEXT_TOKENS")? {
                None => remote::CONTEXT_TOKENS,
                Some(text) => text.parse().map_err(|_| {
                    Refusal::new(500, format!("LLM_CONTEXT_TOKENS is {text:?}; set it to a number of tokens"))
                })?,
            };
            let url = url.trim_end_matches('/').to_owned();
            Ok(Box::new(remote::Endpoint { url, model, embed_model, context_tokens, started, deadline_ms }))
        }
        None => {
            let model = setting("LLM_MODEL")?.unwrap_or_else(|| "default".to_owned());
            let embed_model = setting("LLM_EMBED_MODEL")?.unwrap_or_else(|| model.clone());
            Ok(Box::new(resident::Resident { model, embed_model }))
        }
    }
}

fn answer(request: &Request) -> Result<String, Refusal> {
    let started = Instant::now();
    let path = request.path.strip_prefix("/llm").unwrap_or(request.path);
    let wanted = match path {
        "/chat" | "/count" | "/embed" => "POST",
        "/model" => "GET",
        _ => return Err(Refusal::new(404, "there are POST /chat, POST /count, POST /embed and GET /model")),
    };
    if request.method != wanted {
        return Err(Refusal::new(405, format!("{path} takes {wanted}")));
    }
    let open = || backend(started, request.deadline_ms);
    match path {
        "/chat" => {
            let chat = Chat::parse(&contract::body(request.body)?)?;
            let answer = open()?.chat(&chat)?;
            Ok(answer.json(started.elapsed().as_millis()))
        }
        "/count" => {
            let body = contract::body(request.body)?;
            if body.get("messages").is_some() {
                let messages = contract::messages(&body)?;
                return open()?.count_messages(&messages).map(|counted| counted.json());
            }
            let texts = contract::texts(&body, MAX_TEXTS)?;
            open()?.count(&texts).map(|counted| counted.json())
        }
        "/embed" => {
            let body = contract::body(request.body)?;
            let texts = contract::texts(&body, MAX_EMBEDDED_TEXTS)?;
            open()?.embed(&texts).map(|embedded| embedded.json())
        }
        _ => open()?.card().map(|card| card.json()),
    }
}

fn llm(request: &Request) -> Response {
    match answer(request) {
        Ok(json) => Response::json(json),
        Err(refusal) => refusal.response(),
    }
}

faas::handler!(llm);

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: &'static str, path: &'static str, body: &'static str) -> (u16, String) {
        let response = llm(&Request { method, path, body: body.as_bytes(), ..Request::default() });
        (response.status, String::from_utf8(response.body).unwrap())
    }

    #[test]
    fn paths_are_the_same_with_and_without_the_functions_name() {
        for path in ["/llm/count", "/count"] {
            assert_eq!(refused("POST", path, "{}").0, 400);
        }
        assert_eq!(refused("GET", "/chat", "").0, 405);
        assert_eq!(refused("POST", "/model", "").0, 405);
        for path in ["/", "/llm", "/llm/", "/chat/", "/llm/llm/chat", "/chats"] {
            assert_eq!(refused("POST", path, "{}").0, 404, "{path}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_before_any_model_is_asked() {
        for (body, said) in [
            ("", "not JSON"),
            ("[]", "an object"),
            ("{}", "messages"),
            (r#"{"messages":[]}"#, "empty"),
            (r#"{"messages":[{"role":"user"}]}"#, "content"),
            (r#"{"messages":[{"role":"tool","content":"x"}]}"#, "role"),
            (r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":0}"#, "max_tokens"),
            (r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":1.5}"#, "max_tokens"),
            (r#"{"messages":[{"role":"user","content":"x"}],"temperature":3}"#, "temperature"),
            (r#"{"messages":[{"role":"user","content":"x"}],"seed":-1}"#, "seed"),
            (r#"{"messages":[{"role":"user","content":"x"}],"schema":"x"}"#, "schema"),
        ] {
            let (status, text) = refused("POST", "/chat", body);
            assert_eq!((status, text.contains(said)), (400, true), "{body} {text}");
        }
        for body in [r#"{"texts":"a"}"#, r#"{"texts":[]}"#, r#"{"texts":[1]}"#] {
            assert_eq!(refused("POST", "/embed", body).0, 400, "{body}");
        }
    }
}
