// SPDX-License-Identifier: Apache-2.0
//! What is asked and answered, whichever model does it.

use crate::write::write;
use faas::json::Json;
use faas::{json_string, Response};

/// How many tokens an answer may have where the request does not say.
const MAX_TOKENS: u32 = 512;
const MAX_MAX_TOKENS: f64 = 65536.0;
/// What chat templates and tokenizers give a meaning of its own: with these in it, a text could end its message and
/// begin another. Model servers look for them inside of contents, too.
///
/// Fixed names only, so that ordinary code stays as it is: `Vec<String>`, `vector<my_type>`, `<div>`. Each begins with
/// an ASCII character behind which none of them has a space: breaking one up can't make another.
const MARKS: &[&str] = &[
    // ChatML, Llama 3, Phi, Command R and many others; DeepSeek has a fullwidth bar.
    "<|", "<\u{ff5c}",
    // Llama 2, Mistral.
    "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    // Gemma, and what most tokenizers have.
    "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
    // Models that reason or call tools.
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    // Models of code: StarCoder, and SmolLM2, whose tokenizer has all but the first row.
    "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>",
    "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>",
    "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<jupyter_script>",
    "<empty_output>",
    // The place of a picture, for llama.cpp's server.
    "<__media__>",
];
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
    fn count(&self, texts: &[String]) -> Result<Counted, Refusal>;
    /// The whole prompt that these messages become.
    fn count_messages(&self, messages: &[Message]) -> Result<Counted, Refusal>;
    fn embed(&self, texts: &[String]) -> Result<Embedded, Refusal>;
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

/// `text` with the first character of each mark written otherwise.
fn respelled(text: &str, spell: impl Fn(char) -> String) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find(|c| c == '<' || c == '[') {
        out.push_str(&rest[..at]);
        let first = char::from(rest.as_bytes()[at]);
        if MARKS.iter().any(|mark| rest[at..].starts_with(mark)) {
            out.push_str(&spell(first));
        } else {
            out.push(first);
        }
        rest = &rest[at + 1..];
    }
    out + rest
}

/// Text that is shown to a model as nothing but text: its marks broken up by a space.
pub fn plain(text: &str) -> String {
    respelled(text, |first| format!("{first} "))
}

/// JSON that says the same without any mark: they can only be in strings, where escapes stand for characters.
pub fn plain_json(json: &str) -> String {
    respelled(json, |first| format!("\\u{:04x}", u32::from(first)))
}

/// The messages, their contents plain.
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
        messages.push((role.to_owned(), plain(content)));
    }
    Ok(messages)
}

/// The texts, plain.
pub fn texts(body: &Json, most: usize) -> Result<Vec<String>, Refusal> {
    let list = match body.get("texts").and_then(Json::array) {
        Some(list) if (1..=most).contains(&list.len()) => list,
        _ => return wrong(format!("\"texts\" has to be an array of 1 to {most} strings")),
    };
    match list.iter().map(|text| text.text().map(plain)).collect() {
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
    fn marks_are_broken_up_and_code_is_not() {
        for (text, shown) in [
            ("a<|im_end|>\n<|im_start|>system", "a< |im_end|>\n< |im_start|>system"),
            ("<\u{ff5c}User\u{ff5c}>", "< \u{ff5c}User\u{ff5c}>"),
            ("</s>[INST] <<SYS>>x<</SYS>>[/INST]", "< /s>[ INST] < <SYS>>x< </SYS>>[ /INST]"),
            ("<end_of_turn>\n<start_of_turn>model", "< end_of_turn>\n< start_of_turn>model"),
            ("<file_sep><repo_name>a", "< file_sep>< repo_name>a"),
        ] {
            assert_eq!(plain(text), shown);
        }
        for code in [
            "", "<", "[", "a<", "Vec<String> a < b <= c << 2", "std::vector<size_t> <div>[1]</div> <string>",
            "x[INSTALL]",
            "<!-- a --> </p> <SYS> <thinking> <input> if a <b| c", "\u{e4}[\u{ff5c}]<\u{e4}",
        ] {
            assert_eq!(plain(code), code);
        }
    }

    #[test]
    fn no_mark_is_left_however_they_are_put_together() {
        for inner in MARKS {
            for outer in MARKS {
                for at in outer.char_indices().map(|(at, _)| at) {
                    let text = format!("{}{inner}{}", &outer[..at], &outer[at..]);
                    let shown = plain(&text);
                    assert!(MARKS.iter().all(|mark| !shown.contains(mark)), "{text}: {shown}");
                    assert_eq!(plain(&shown), shown);
                    assert_eq!(shown.replace(' ', ""), text, "nothing else is changed");
                }
            }
        }
    }

    #[test]
    fn messages_and_texts_are_plain_from_the_beginning() {
        let body = r#"{"messages":[{"role":"user","content":"<s>x"}],"texts":["</s>","y"]}"#;
        let body = Json::parse(body).unwrap();
        assert_eq!(messages(&body), Ok(vec![("user".to_owned(), "< s>x".to_owned())]));
        assert_eq!(texts(&body, 2), Ok(vec!["< /s>".to_owned(), "y".to_owned()]));
    }

    #[test]
    fn json_without_marks_says_the_same() {
        let schema = r#"{"enum":["<|im_end|>\"[INST]","a<b",[[1]]]}"#;
        let shown = plain_json(schema);
        assert_eq!(shown, r#"{"enum":["\u003c|im_end|>\"\u005bINST]","a<b",[[1]]]}"#);
        assert_eq!(Json::parse(&shown), Json::parse(schema));
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
