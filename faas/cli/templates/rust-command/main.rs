//! A `command` function: one fresh process image per request, CGI/1.1 (RFC 3875).
//!
//! The request is in the environment (REQUEST_METHOD, PATH_INFO, QUERY_STRING, HTTP_*) and on
//! stdin; the response is header lines, a blank line and the body on stdout. What goes to stderr
//! is the function's log: faas logs @NAME@

use std::env;

/// A meta-variable that does not apply to the request is unset, not empty.
fn meta(name: &str, fallback: &str) -> String {
    env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| fallback.into())
}

fn main() {
    println!("Content-Type: text/plain; charset=utf-8");
    println!();
    println!("Hello from @NAME@!");
    println!("{} {}{}", meta("REQUEST_METHOD", "GET"), meta("SCRIPT_NAME", ""), meta("PATH_INFO", ""));
}
