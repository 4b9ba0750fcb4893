// SPDX-License-Identifier: Apache-2.0
//! markdown: POST Markdown, get an HTML page.
//!
//! CommonMark with GitHub's tables, fenced code, strikethrough and task lists, and
//! footnotes. The page is titled by its first heading, and headings have ids.
//!
//! A `command` and not a reactor, because a text filter is what stdin and stdout
//! are for: without a host (REQUEST_METHOD is unset) the same module renders
//! stdin to a bare page on stdout, as `wasmtime run markdown.wasm < README.md`.
//!
//! The text may come from anybody, so the page must not run scripts under the
//! host's origin: raw HTML is shown as text, links keep only harmless schemes,
//! and a Content-Security-Policy forbids the rest.

use pulldown_cmark::{html, CowStr, Event, Options, Parser, Tag};
use std::collections::HashSet;
use std::env;
use std::io::{self, Read, Write};

const USAGE: &str = "\
POST Markdown to this address to get it as an HTML page:

    curl --data-binary @README.md -H 'Content-Type: text/markdown' URL

CommonMark, with tables, fenced code, footnotes, strikethrough and task lists.
Raw HTML is shown as text. The text must be UTF-8.
";

const STYLE: &str = "body{max-width:46rem;margin:2rem auto;padding:0 1rem;\
font:1rem/1.6 system-ui,sans-serif;color:#1f2328;background:#fff}\
pre,code{font-family:ui-monospace,monospace;font-size:.9em;background:#f3f4f6;border-radius:4px}\
code{padding:.1em .3em}pre{padding:.8rem;overflow-x:auto}pre code{padding:0}\
table{border-collapse:collapse}th,td{border:1px solid #d0d7de;padding:.3rem .7rem}\
blockquote{margin-left:0;padding-left:1rem;border-left:4px solid #d0d7de;color:#59636e}\
img{max-width:100%}.footnote-definition{font-size:.9em}.footnote-definition p{display:inline}";

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src * data:; \
base-uri 'none'; form-action 'none'";

/// `text` for HTML content or a double-quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// Whether following the link cannot run a script: a relative reference, or one
/// of the schemes on the list. Browsers ignore white space and control characters
/// in a scheme, so those are dropped before comparing.
fn harmless(url: &str) -> bool {
    let squeezed: String =
        url.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
    match squeezed.find([':', '/', '?', '#']) {
        Some(at) if squeezed[at..].starts_with(':') => {
            let scheme = squeezed[..at].to_ascii_lowercase();
            matches!(scheme.as_str(), "http" | "https" | "mailto" | "tel" | "ftp")
        }
        _ => true,
    }
}

/// GitHub's way to make an id of a heading: lower case, blanks to hyphens,
/// punctuation dropped, a number appended when it is taken.
fn slug(text: &str, taken: &mut HashSet<String>) -> String {
    let base: String = text
        .trim()
        .chars()
        .flat_map(char::to_lowercase)
        .filter_map(|c| match c {
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        })
        .collect();
    let base = if base.is_empty() { "section".to_string() } else { base };
    let mut id = base.clone();
    let mut number = 0;
    while !taken.insert(id.clone()) {
        number += 1;
        id = format!("{base}-{number}");
    }
    id
}

/// The plain text of inline events.
fn plain(events: &[Event]) -> String {
    events
        .iter()
        .map(|event| match event {
            Event::Text(text) | Event::Code(text) => text.as_ref(),
            Event::SoftBreak | Event::HardBreak => " ",
            _ => "",
        })
        .collect()
}

/// A whole HTML page for a Markdown text.
fn page(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS;
    let defang = |url: CowStr| -> String {
        if harmless(&url) {
            url.to_string()
        } else {
            "#".to_string()
        }
    };
    let mut events: Vec<Event> = Parser::new_ext(markdown, options)
        .map(|event| match event {
            Event::Html(raw) => Event::Text(raw),
            Event::Start(Tag::Link(kind, url, title)) => {
                Event::Start(Tag::Link(kind, defang(url).into(), title))
            }
            Event::Start(Tag::Image(kind, url, title)) => {
                Event::Start(Tag::Image(kind, defang(url).into(), title))
            }
            event => event,
        })
        .collect();

    let mut title = None;
    let mut taken = HashSet::new();
    let mut start = 0;
    for at in 0..events.len() {
        match events[at] {
            Event::Start(Tag::Heading(..)) => start = at,
            Event::End(Tag::Heading(level, ..)) => {
                let text = plain(&events[start..at]);
                // The tag borrows its id and closes with an equal one, hence plain
                // HTML in place of both.
                let id = escape(&slug(&text, &mut taken));
                events[start] = Event::Html(format!("<{level} id=\"{id}\">").into());
                events[at] = Event::Html(format!("</{level}>\n").into());
                title.get_or_insert(text);
            }
            _ => {}
        }
    }

    let title = escape(title.as_deref().unwrap_or("Markdown").trim());
    let mut out = format!(
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    );
    html::push_html(&mut out, events.into_iter());
    out.push_str("</body>\n</html>\n");
    out
}

fn run() -> io::Result<()> {
    let method = env::var("REQUEST_METHOD").ok();
    let mut out = io::stdout();
    let plain_text = "Content-Type: text/plain; charset=utf-8";
    match method.as_deref() {
        Some("GET" | "HEAD") => return write!(out, "{plain_text}\n\n{USAGE}"),
        Some("POST") | None => {}
        Some(_) => {
            return write!(
                out,
                "Status: 405 Method Not Allowed\nAllow: GET, HEAD, POST\n{plain_text}\n\n{USAGE}"
            );
        }
    }
    let mut body = Vec::new();
    io::stdin().read_to_end(&mut body)?;
    match (String::from_utf8(body), method) {
        (Ok(text), Some(_)) => write!(
            out,
            "Content-Type: text/html; charset=utf-8\nContent-Security-Policy: {POLICY}\n\
             X-Content-Type-Options: nosniff\n\n{}",
            page(&text)
        ),
        (Ok(text), None) => write!(out, "{}", page(&text)),
        (Err(_), Some(_)) => {
            write!(out, "Status: 400 Bad Request\n{plain_text}\n\nThe text is not UTF-8.\n")
        }
        (Err(error), None) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn main() {
    if let Err(error) = run() {
        eprintln!("markdown: {error}");
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions() {
        let html = page(
            "# A *title* & more\n\n|a|b|\n|-|:-:|\n|1|2|\n\n```rust\nlet x = 1 < 2;\n```\n\n\
             ~~gone~~\n\n- [x] done\n- [ ] open\n\nnote[^1]\n\n[^1]: the note\n\n# A title & more\n",
        );
        for part in [
            "<title>A title &amp; more</title>",
            "<h1 id=\"a-title--more\">A <em>title</em> &amp; more</h1>",
            "<h1 id=\"a-title--more-1\">",
            "<table>",
            "<pre><code class=\"language-rust\">let x = 1 &lt; 2;",
            "<del>gone</del>",
            "type=\"checkbox\" checked",
            "class=\"footnote-definition\"",
        ] {
            assert!(html.contains(part), "{part} not in {html}");
        }
    }

    #[test]
    fn nothing_active_gets_through() {
        let html = page(
            "<script>alert(1)</script>\n\na <img src=x onerror=y> b\n\n[l](javascript:alert(1)) \
             [m](<java\tscript:x>) ![i](JavaScript:x) [d](data:text/html,x) [r](a/b:c?d#e)\n\n\
             # <b onclick=z>\n",
        );
        assert!(!html.contains("<script"));
        assert!(!html.contains("<img src=x"));
        assert!(!html.contains("<b onclick"));
        assert!(!html.to_lowercase().contains("href=\"java"));
        assert!(!html.to_lowercase().contains("src=\"java"));
        assert!(!html.contains("href=\"data:"));
        assert!(html.contains("href=\"a/b:c?d#e\""));
    }

    #[test]
    fn empty_text_is_a_page() {
        assert!(page("").contains("<title>Markdown</title>"));
    }
}
