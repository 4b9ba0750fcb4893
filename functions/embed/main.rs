// SPDX-License-Identifier: Apache-2.0
//! embed: POST texts, one a line, get their embeddings as JSON.
//!
//! `POST /embed` answers `{"embeddings": [[...], ...], "prompt_tokens": N}`;
//! `POST /embed/similarity` takes two lines and answers `{"similarity": 0.87}`, the
//! cosine of the angle between their embeddings.
//!
//! A reactor: one request in, one answer out.

use faas::nn::{Error, Model};
use faas::{json_string, Request, Response};

const USAGE: &str = "\
POST texts, one a line, to get their embeddings as JSON:

    printf 'a cat\\na dog\\n' | curl --data-binary @- URL
    printf 'a cat\\na dog\\n' | curl --data-binary @- URL/similarity
";

const MAX_TEXTS: usize = 256;

fn refuse(status: u16, message: &str) -> Response {
    Response::json(format!("{{\"error\":{}}}\n", json_string(message))).with_status(status)
}

fn refuse_for(error: Error) -> Response {
    match error {
        Error::BUSY => refuse(503, &error.to_string()).header("retry-after", "1"),
        Error::PROMPT_TOO_LONG | Error::TOO_LARGE => refuse(413, &error.to_string()),
        Error::INVALID_ARGUMENT => refuse(400, &error.to_string()),
        _ => refuse(500, &error.to_string()),
    }
}

/// The cosine; the vectors are of length 1 already.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn embed_all(texts: &[&str]) -> Result<(Vec<Vec<f32>>, u32), Error> {
    let model = Model::load("default")?;
    let mut tokens = 0;
    let mut vectors = Vec::with_capacity(texts.len());
    for text in texts {
        vectors.push(model.embed(text)?);
        tokens += model.usage()?.input_tokens;
    }
    Ok((vectors, tokens))
}

fn embed(request: &Request) -> Response {
    if request.method != "POST" {
        return Response::text(USAGE);
    }
    let body = match std::str::from_utf8(request.body) {
        Ok(body) => body,
        Err(_) => return refuse(400, "the body is not UTF-8"),
    };
    let texts: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let compares = request.path.ends_with("/similarity");
    if compares && texts.len() != 2 {
        return refuse(400, "send two lines to compare");
    }
    if texts.is_empty() || texts.len() > MAX_TEXTS {
        return refuse(400, "send 1 to 256 lines");
    }
    let (vectors, tokens) = match embed_all(&texts) {
        Ok(embedded) => embedded,
        Err(error) => return refuse_for(error),
    };
    if compares {
        return Response::json(format!("{{\"similarity\":{}}}\n", cosine(&vectors[0], &vectors[1])));
    }
    let rows: Vec<String> = vectors
        .iter()
        .map(|vector| {
            let values: Vec<String> = vector.iter().map(f32::to_string).collect();
            format!("[{}]", values.join(","))
        })
        .collect();
    Response::json(format!("{{\"embeddings\":[{}],\"prompt_tokens\":{tokens}}}\n", rows.join(",")))
}

faas::handler!(embed);
