// SPDX-License-Identifier: Apache-2.0
//! hello-rust: the smallest useful `command` function in Rust. CGI/1.1 needs no
//! library: meta-variables are in the environment, the answer goes to stdout.

use std::env;

/// A meta-variable that does not apply to the request is unset, not empty.
fn meta(name: &str, fallback: &str) -> String {
    env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| fallback.into())
}

fn main() {
    println!("Content-Type: text/plain; charset=utf-8");
    println!();
    println!("Hello from Rust!");
    println!(
        "{} {}{}",
        meta("REQUEST_METHOD", "GET"),
        meta("SCRIPT_NAME", ""),
        meta("PATH_INFO", "")
    );
}
