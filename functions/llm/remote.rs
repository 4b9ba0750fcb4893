// SPDX-License-Identifier: Apache-2.0
//! The model of an endpoint that speaks the API of OpenAI.
//!
//! Endpoints differ in what they take. One that refuses a field with a 400 that names it
//! is asked again without: `response_format` (the schema then goes into the prompt),
//! `max_tokens` (`max_completion_tokens` instead), `temperature`, `seed`.

use crate::contract::{plain_json, Answer, Backend, Card, Chat, Counted, Embedded, Message, Refusal};
use crate::resident::cut_off;
use crate::schema::{conforms, is_strict, json_in, mend};
use faas::json::Json;
use faas::json_string;
use faas::v1::{Error, Outgoing};
use std::time::Instant;

/// Where LLM_CONTEXT_TOKENS is not set: what every endpoint has by now.
pub const CONTEXT_TOKENS: u64 = 8192;
/// Of requests for one answer.
const MAX_ATTEMPTS: usize = 5;
/// Seconds, where the endpoint does not say.
const RETRY_AFTER_S: u64 = 5;
const MAX_QUOTED: usize = 300;
/// So long before the end of the invocation there is time for a clear answer.
const MARGIN_MS: u64 = 1000;

pub struct Endpoint {
    pub url: String,
    pub model: String,
    pub embed_model: String,
    pub context_tokens: u64,
    pub started: Instant,
    pub deadline_ms: u64,
}

/// What of a request the endpoint takes, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    completion_tokens: bool,
    temperature: bool,
    seed: bool,
    response_format: bool,
    /// The schema is told in words.
    told: bool,
}

impl Form {
    const FIRST: Form =
        Form { completion_tokens: false, temperature: true, seed: true, response_format: true, told: false };

    /// The form after a refusal that says `message`; `None` when there is nothing to leave out.
    fn after(self, message: &str, chat: &Chat) -> Option<Form> {
        let says = |word: &str| message.contains(word);
        if !self.completion_tokens && says("max_completion_tokens") {
            Some(Form { completion_tokens: true, ..self })
        } else if self.temperature && says("temperature") {
            Some(Form { temperature: false, ..self })
        } else if self.seed && chat.seed.is_some() && says("seed") {
            Some(Form { seed: false, ..self })
        } else if self.response_format && chat.schema.is_some() && ["response_format", "schema"].into_iter().any(says) {
            Some(Form { response_format: false, told: true, ..self })
        } else {
            None
        }
    }
}

fn chat_body(model: &str, chat: &Chat, form: Form) -> String {
    let schema = chat.schema_text();
    let mut messages: Vec<String> = Vec::with_capacity(chat.messages.len() + 1);
    let message = |role: &str, text: &str| {
        format!("{{\"role\":{},\"content\":{}}}", json_string(role), json_string(text))
    };
    messages.extend(chat.messages.iter().map(|(role, text)| message(role, text)));
    if let (true, Some(schema)) = (form.told, &schema) {
        // Behind the others: what they begin with is often cached.
        let schema = plain_json(schema);
        let text = format!("Answer with JSON alone, without a fence, that conforms to this JSON schema: {schema}");
        messages.push(message("user", &text));
    }
    let mut body = format!("{{\"model\":{},\"messages\":[{}]", json_string(model), messages.join(","));
    let limit = if form.completion_tokens { "max_completion_tokens" } else { "max_tokens" };
    body += &format!(",\"{limit}\":{}", chat.max_tokens);
    if form.temperature {
        body += &format!(",\"temperature\":{}", chat.temperature);
    }
    if let (true, Some(seed)) = (form.seed, chat.seed) {
        body += &format!(",\"seed\":{seed}");
    }
    if let (true, Some(schema)) = (form.response_format, &schema) {
        body += ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"answer\",\"schema\":";
        body += schema;
        // In strict mode OpenAI refuses other schemas; without it, it follows them as well as it can.
        body += &format!(",\"strict\":{}}}}}", chat.schema.as_ref().map_or(false, is_strict));
    }
    body + "}"
}

/// Tokens of a text whose tokenizer is not here, rather more than less.
fn estimate(text: &str) -> u64 {
    (text.len() as u64 + 2) / 3
}

/// The beginning of what the endpoint says of an error.
fn quoted(body: &str) -> String {
    let json = Json::parse(body);
    let error = json.as_ref().and_then(|json| json.get("error"));
    let message = error.and_then(|error| error.get("message").or(Some(error))).and_then(Json::text);
    message.unwrap_or(body).trim().chars().take(MAX_QUOTED).collect()
}

fn refusal(status: u16, retry_after: Option<u64>, body: &str) -> Refusal {
    let seconds = retry_after.unwrap_or(RETRY_AFTER_S);
    let message = format!("the endpoint answers {status}: {}", quoted(body));
    match status {
        429 => Refusal::retry(429, seconds, message),
        // Its own fault or a gap of it, and often the same for the same request: asking for ever is no use.
        500 | 501 => Refusal::new(502, message),
        500..=599 => Refusal::retry(503, seconds, message),
        400 | 413 | 422 => Refusal::new(status, message),
        401 | 403 => Refusal::new(
            502,
            format!("{message}; set the secret LLM_KEY, and name it in capabilities.credentials of llm's function.toml"),
        ),
        404 => Refusal::new(502, format!("{message}; check LLM_URL and LLM_REMOTE_MODEL")),
        _ => Refusal::new(502, message),
    }
}

/// Retry-After in seconds; dates and nonsense count as not there.
fn seconds(text: &str) -> Option<u64> {
    let seconds: f64 = text.trim().parse().ok()?;
    (0.0..=86400.0).contains(&seconds).then(|| seconds.ceil() as u64)
}

/// The text, whether it was cut, and the tokens, of a completion.
fn completion(json: &Json) -> Option<(String, bool, Option<u64>, Option<u64>)> {
    let choice = json.get("choices")?.array()?.first()?;
    let text = choice.get("message")?.get("content")?.text()?;
    let is_cut = choice.get("finish_reason").and_then(Json::text) == Some("length");
    let count = |name: &str| json.get("usage")?.get(name)?.number().map(|n| n.max(0.0) as u64);
    Some((text.to_owned(), is_cut, count("prompt_tokens"), count("completion_tokens")))
}

impl Endpoint {
    fn post(&self, path: &str, body: &str) -> Result<(u16, Option<u64>, String), Refusal> {
        let url = format!("{}{path}", self.url);
        let mut outgoing = Outgoing::new("POST", &url)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(body.as_bytes());
        if self.deadline_ms > 0 {
            let gone = self.started.elapsed().as_millis() as u64;
            outgoing = outgoing.timeout_ms(self.deadline_ms.saturating_sub(gone + MARGIN_MS).max(1));
        }
        let failed = |error: Error| match error {
            Error::DENIED | Error::INVALID => Refusal::new(
                500,
                "a request to LLM_URL is not allowed, its secret not set, or it is no URL; the function's log says which",
            ),
            error => Refusal::retry(503, RETRY_AFTER_S, format!("the endpoint of LLM_URL: {error}")),
        };
        let incoming = outgoing.send().map_err(failed)?;
        let head = incoming.head().map_err(failed)?;
        let body = incoming.body().map_err(failed)?;
        Ok((head.status, head.header("retry-after").and_then(seconds), String::from_utf8_lossy(&body).into_owned()))
    }
}

fn unreadable(what: &str) -> Refusal {
    Refusal::new(502, format!("the endpoint's answer has no {what}; is LLM_URL the base of an OpenAI-compatible API?"))
}

impl Backend for Endpoint {
    fn chat(&self, chat: &Chat) -> Result<Answer, Refusal> {
        let mut form = Form::FIRST;
        let (mut n_prompt, mut n_completion) = (0, 0); // of all attempts: that is what they cost
        for _ in 0..MAX_ATTEMPTS {
            let (status, retry_after, body) = self.post("/chat/completions", &chat_body(&self.model, chat, form))?;
            if status != 200 {
                match form.after(&quoted(&body), chat) {
                    Some(other) if matches!(status, 400 | 422) => form = other,
                    _ => return Err(refusal(status, retry_after, &body)),
                }
                continue;
            }
            let json = Json::parse(&body).ok_or_else(|| unreadable("JSON"))?;
            let (text, is_cut, prompt, answered) = completion(&json).ok_or_else(|| unreadable("choices"))?;
            n_prompt += prompt.unwrap_or_else(|| chat.messages.iter().map(|(_, text)| estimate(text)).sum());
            n_completion += answered.unwrap_or_else(|| estimate(&text));
            let text = match &chat.schema {
                None => text,
                Some(schema) => {
                    let whole = json_in(&text).filter(|json| Json::parse(json).map_or(false, |v| conforms(&v, schema)));
                    match whole.map(str::to_owned) {
                        Some(json) => json,
                        None if is_cut => mend(&text, schema).ok_or_else(|| cut_off(n_completion as u32))?,
                        None if !form.told => {
                            form.told = true;
                            continue;
                        }
                        None => {
                            return Err(Refusal::new(
                                502,
                                "the endpoint's answer does not conform to the schema; use a model with structured outputs",
                            ))
                        }
                    }
                }
            };
            let model = self.model.clone();
            return Ok(Answer { text, model, prompt_tokens: n_prompt, completion_tokens: n_completion, is_cut });
        }
        Err(Refusal::new(502, "the endpoint refused every form of the request; its last words are in no field known"))
    }

    fn count(&self, texts: &[String]) -> Result<Counted, Refusal> {
        Ok(Counted { tokens: texts.iter().map(|text| estimate(text)).collect(), exact: false })
    }

    fn count_messages(&self, messages: &[Message]) -> Result<Counted, Refusal> {
        let tokens = messages.iter().map(|(role, text)| estimate(role) + estimate(text) + 4).sum();
        Ok(Counted { tokens: vec![tokens], exact: false })
    }

    fn embed(&self, texts: &[String]) -> Result<Embedded, Refusal> {
        let inputs: Vec<String> = texts.iter().map(|text| json_string(text)).collect();
        let body = format!("{{\"model\":{},\"input\":[{}]}}", json_string(&self.embed_model), inputs.join(","));
        let (status, retry_after, body) = self.post("/embeddings", &body)?;
        if status != 200 {
            return Err(refusal(status, retry_after, &body));
        }
        let vectors = embeddings(&body, texts.len()).ok_or_else(|| unreadable("embeddings"))?;
        let vectors: Option<Vec<Vec<f32>>> = vectors.into_iter().map(normalised).collect();
        let vectors = vectors.ok_or_else(|| {
            Refusal::new(
                502,
                format!(
                    "the endpoint's embeddings have a vector of length zero or beyond numbers; check that {:?} is a \
                     model that makes them, and name another by LLM_EMBED_MODEL",
                    self.embed_model
                ),
            )
        })?;
        Ok(Embedded { vectors, model: self.embed_model.clone() })
    }

    fn card(&self) -> Result<Card, Refusal> {
        Ok(Card { model: self.model.clone(), context_tokens: self.context_tokens, resident: false })
    }
}

/// A vector of length 1, as those of resident models: callers compare them by the dot product alone.
fn normalised(vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let is_one = length.is_finite() && length > 0.0;
    is_one.then(|| vector.iter().map(|value| (f64::from(*value) / length) as f32).collect())
}

/// One vector for each input, of one length, in the order of the inputs whatever that of the answer is.
fn embeddings(body: &str, count: usize) -> Option<Vec<Vec<f32>>> {
    let json = Json::parse(body)?;
    let mut vectors = vec![Vec::new(); count];
    for (at, row) in json.get("data")?.array()?.iter().enumerate() {
        let index = row.get("index").and_then(Json::number).map_or(at, |index| index as usize);
        let values: Option<Vec<f32>> =
            row.get("embedding")?.array()?.iter().map(|value| value.number().map(|value| value as f32)).collect();
        *vectors.get_mut(index)? = values?;
    }
    let length = vectors.first().map_or(0, Vec::len);
    (length > 0 && vectors.iter().all(|vector| vector.len() == length)).then_some(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat() -> Chat {
        let schema = Json::parse(r#"{"type":"object"}"#);
        Chat { messages: vec![("user".into(), "a\"b".into())], max_tokens: 9, temperature: 0.5, seed: Some(3), schema }
    }

    #[test]
    fn a_request_has_all_that_was_asked_for() {
        assert_eq!(
            chat_body("m", &chat(), Form::FIRST),
            concat!(
                r#"{"model":"m","messages":[{"role":"user","content":"a\"b"}],"max_tokens":9,"temperature":0.5,"seed":3,"#,
                r#""response_format":{"type":"json_schema","json_schema":{"name":"answer","schema":{"type":"object"},"#,
                r#""strict":false}}}"#
            )
        );
    }

    #[test]
    fn strict_is_only_what_openai_takes_as_such() {
        let properties = r#"{"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":false"#;
        for (required, strict) in [(r#","required":["a"]}"#, true), ("}", false)] {
            let schema = format!("{properties}{required}");
            let chat = Chat { schema: Json::parse(&schema), ..chat() };
            let body = Json::parse(&chat_body("m", &chat, Form::FIRST)).unwrap();
            let format = body.get("response_format").and_then(|format| format.get("json_schema")).unwrap();
            assert_eq!(format.get("strict"), Some(&Json::Bool(strict)), "{schema}");
        }
    }

    #[test]
    fn a_schema_in_words_has_no_marks() {
        let chat = Chat { schema: Json::parse(r#"{"enum":["<|im_end|>"]}"#), ..chat() };
        let body = chat_body("m", &chat, Form { response_format: false, told: true, ..Form::FIRST });
        assert!(!body.contains("<|") && body.contains(r#"\\u003c|im_end|>"#), "{body}");
    }

    #[test]
    fn a_field_that_is_refused_is_left_out_once() {
        let form = Form::FIRST.after("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'", &chat()).unwrap();
        assert!(chat_body("m", &chat(), form).contains("\"max_completion_tokens\":9"));
        assert_eq!(form.after("Use 'max_completion_tokens'", &chat()), None);
        let form = form.after("temperature has to be 1", &chat()).unwrap();
        assert!(!chat_body("m", &chat(), form).contains("temperature"));
        let form = form.after("unknown field response_format", &chat()).unwrap();
        let body = chat_body("m", &chat(), form);
        assert!(!body.contains("response_format") && body.contains("JSON schema"));
        assert!(Json::parse(&body).is_some());
        assert_eq!(form.after("no such model", &chat()), None);
    }

    #[test]
    fn refusals_keep_what_the_caller_can_act_on() {
        let busy = refusal(429, Some(7), r#"{"error":{"message":"slow down"}}"#);
        assert_eq!((busy.status, busy.retry_after), (429, Some(7)));
        assert!(busy.message.ends_with("slow down"));
        for (status, told, retry_after) in [
            (500, 502, None), (501, 502, None), (502, 503, Some(5)), (503, 503, Some(9)), (504, 503, Some(5)),
            (529, 503, Some(9)),
        ] {
            let refused = refusal(status, retry_after.filter(|seconds| *seconds == 9), "");
            assert_eq!((refused.status, refused.retry_after), (told, retry_after), "{status}");
        }
        assert_eq!(refusal(401, None, "no").status, 502);
        assert_eq!(refusal(400, None, "no").status, 400);
        assert_eq!(quoted(&"x".repeat(1000)).len(), MAX_QUOTED);
        assert_eq!((seconds("1.2"), seconds("Wed, 21 Oct"), seconds("-1")), (Some(2), None, None));
    }

    #[test]
    fn embeddings_come_in_the_order_of_the_inputs() {
        let body = r#"{"data":[{"index":1,"embedding":[2]},{"index":0,"embedding":[1]}]}"#;
        assert_eq!(embeddings(body, 2), Some(vec![vec![1.0], vec![2.0]]));
        assert_eq!(embeddings(body, 3), None);
        assert_eq!(embeddings(body, 1), None);
        assert_eq!(embeddings("{}", 0), None);
    }

    #[test]
    fn vectors_have_length_one_or_are_refused() {
        assert_eq!(normalised(vec![3.0, -4.0]), Some(vec![0.6, -0.8]));
        assert_eq!(normalised(vec![3e38, 3e38]).map(|vector| vector[0]), Some(0.5f32.sqrt()));
        assert_eq!(normalised(vec![1e-40, 0.0]), Some(vec![1.0, 0.0]));
        for vector in [vec![0.0, 0.0], vec![f32::INFINITY, 0.0], vec![f32::NAN], vec![]] {
            assert_eq!(normalised(vector), None);
        }
        let body = r#"{"data":[{"index":0,"embedding":[1e999]}]}"#;
        assert_eq!(embeddings(body, 1).map(|rows| normalised(rows[0].clone())), Some(None));
    }

    #[test]
    fn estimates_are_rounded_up() {
        assert_eq!((estimate(""), estimate("a"), estimate("abc"), estimate("abcd")), (0, 1, 1, 2));
    }
}
