//! A `reactor` function: one call per request, the fastest kind. The folder faas/ is the SDK.

use faas::{json_string, Request, Response};

fn handle(request: &Request) -> Response {
    Response::json(format!(
        "{{\"hello\":\"@NAME@\",\"method\":{},\"path\":{}}}\n",
        json_string(request.method),
        json_string(request.path)
    ))
}

faas::handler!(handle);
