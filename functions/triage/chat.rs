// SPDX-License-Identifier: Apache-2.0
//! The chat that is told of tickets. The host adds its token to the request; nothing here knows it.

use crate::Failure;
use faas::json_string;
use faas::v1::{config, Outgoing};

pub fn say(text: &str) -> Result<(), Failure> {
    let url = config("CHAT_URL")?.ok_or_else(|| {
        Failure::new(500, "CHAT_URL is not set: faas config set triage CHAT_URL=http://127.0.0.1:9300/messages")
    })?;
    let body = format!("{{\"text\":{}}}", json_string(text));
    let reply = Outgoing::new("POST", &url)
        .header("content-type", "application/json")
        .timeout_ms(5000)
        .body(body.as_bytes())
        .send()?;
    match reply.head()?.status {
        200..=299 => Ok(()),
        status => Err(Failure::new(503, format!("the chat answers {status}"))),
    }
}
