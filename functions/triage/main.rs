// SPDX-License-Identifier: Apache-2.0
//! triage: sorts tickets with a model, remembers them, and tells a chat of the urgent ones.

mod chat;
mod classify;
mod memory;

use classify::{classify, Ticket};
use faas::v1::Error;
use faas::{json_string, Request, Response};
use memory::Memory;

/// Why there is no answer. From 500 on a job is tried again.
pub struct Failure {
    pub status: u16,
    pub reason: String,
}

impl Failure {
    pub fn new(status: u16, reason: impl Into<String>) -> Failure {
        Failure { status, reason: reason.into() }
    }
}

impl From<Error> for Failure {
    /// What the host refused; the function's log has a line that says why.
    fn from(error: Error) -> Failure {
        Failure::new(503, format!("the host: {error}"))
    }
}

fn ticket(request: &Request) -> Result<String, Failure> {
    let ticket = Ticket::parse(request.body)?;
    let memory = Memory::open()?;
    let verdict = match memory.verdict(&ticket.id)? {
        Some(known) => known,
        None => {
            let verdict = classify(&ticket)?;
            eprintln!("{}: {}, urgent: {}", ticket.id, verdict.category, verdict.urgent);
            memory.keep(&ticket.id, &verdict)?;
            verdict
        }
    };
    if verdict.urgent {
        memory.once(&format!("told/{}", ticket.id), || {
            chat::say(&format!("{}: {} ({})", ticket.id, verdict.summary, verdict.category))
        })?;
    }
    Ok(verdict.json())
}

fn digest(request: &Request) -> Result<String, Failure> {
    let memory = Memory::open()?;
    let text = memory.digest()?;
    // The same in every run of one job.
    let run = request.header("x-faas-job").unwrap_or(request.request_id);
    memory.once(&format!("digest/{run}"), || chat::say(&text))?;
    Ok(format!("{{\"said\":{}}}", json_string(&text)))
}

fn handle(request: &Request) -> Response {
    let answer = match (request.method, request.path) {
        ("POST", "/triage/tickets") => ticket(request),
        ("POST", "/triage/digest") => digest(request),
        ("GET", "/triage") => Memory::open().and_then(|memory| memory.all()),
        _ => Err(Failure::new(404, "nothing is here; send tickets to POST /triage/tickets")),
    };
    match answer {
        Ok(json) => Response::json(json + "\n"),
        Err(failure) => {
            eprintln!("{} {}: {}", request.method, request.path, failure.reason);
            Response::json(format!("{{\"error\":{}}}\n", json_string(&failure.reason))).with_status(failure.status)
        }
    }
}

faas::handler!(handle);
