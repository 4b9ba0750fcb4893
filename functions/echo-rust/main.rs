// SPDX-License-Identifier: Apache-2.0
//! echo-rust: a `reactor` function. POST, PUT and PATCH get their body back with
//! its content type; anything else gets a JSON description of the request. The
//! output is byte for byte that of echo-c.

use faas::{json_string, Request, Response};

/// `"name":"value",` for each field.
fn fields(out: &mut String, list: &[(&str, &str)]) {
    for (name, value) in list {
        *out += &format!("{}:{},", json_string(name), json_string(value));
    }
}

fn handle(request: &Request) -> Response {
    if matches!(request.method, "POST" | "PUT" | "PATCH") {
        let kind = request.header("content-type").unwrap_or("application/octet-stream");
        return Response::new(200).header("content-type", kind).with_body(request.body);
    }
    let mut out = String::from("{");
    fields(
        &mut out,
        &[("method", request.method), ("path", request.path), ("query", request.query)],
    );
    // Pairs and not an object: a header name may occur more than once.
    let headers: Vec<String> = request
        .headers
        .iter()
        .map(|(name, value)| {
            format!("[{},{}]", json_string(name), json_string(&String::from_utf8_lossy(value)))
        })
        .collect();
    let params: Vec<String> = request
        .params
        .iter()
        .map(|(name, value)| format!("{}:{}", json_string(name), json_string(value)))
        .collect();
    out += &format!("\"headers\":[{}],\"params\":{{{}}},", headers.join(","), params.join(","));
    fields(&mut out, &[("route", request.route), ("function", request.function)]);
    out += &format!("\"version\":{},", request.version);
    fields(
        &mut out,
        &[("request_id", request.request_id), ("remote_addr", request.remote_addr)],
    );
    out += &format!(
        "\"deadline_ms\":{},\"body_bytes\":{}}}\n",
        request.deadline_ms,
        request.body.len()
    );
    Response::json(out)
}

faas::handler!(handle);
