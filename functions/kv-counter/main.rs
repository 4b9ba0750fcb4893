// SPDX-License-Identifier: Apache-2.0
//! Counts visits, for each page apart, in the function's own store.
//!
//!     GET /kv-counter/PAGE       adds a visit, says how many there were
//!     GET /kv-counter/           all pages with their visits
//!     DELETE /kv-counter/PAGE    forgets a page

use faas::v1::{config, Error, Store};
use faas::{Request, Response};

fn count(request: &Request) -> Response {
    let page = request.path.strip_prefix("/kv-counter").unwrap_or(request.path).trim_start_matches('/');
    answer(request.method, page).unwrap_or_else(|error| {
        let status = if error.is_retryable() { 503 } else { 500 };
        Response::new(status).with_body(format!("the store: {error}\n"))
    })
}

fn answer(method: &str, page: &str) -> Result<Response, Error> {
    let store = Store::open("default")?;
    match (method, page) {
        ("GET", "") => {
            let (mut lines, mut cursor) = (String::new(), String::new());
            loop {
                let (keys, next) = store.list("visits/", &cursor, 100)?;
                for key in &keys {
                    if let Some(visits) = store.get(key)? {
                        lines += &format!("{} {}\n", &key["visits/".len()..], String::from_utf8_lossy(&visits));
                    }
                }
                if next.is_empty() {
                    return Ok(Response::text(lines));
                }
                cursor = next;
            }
        }
        ("GET", page) => {
            let visits = store.increment(&format!("visits/{page}"), 1)?;
            let greeting = config("GREETING")?.unwrap_or_else(|| "visits:".to_owned());
            Ok(Response::text(format!("{greeting} {visits}\n")))
        }
        ("DELETE", page) => {
            let found = store.delete(&format!("visits/{page}"))?;
            Ok(Response::new(if found { 204 } else { 404 }))
        }
        _ => Ok(Response::new(405).header("allow", "GET, DELETE")),
    }
}

faas::handler!(count);
