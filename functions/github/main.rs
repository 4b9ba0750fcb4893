// SPDX-License-Identifier: Apache-2.0
//! The GitHub API for other functions: the one that may reach it, and no more of it
//! than this table. JSON in, JSON out; the host adds the token.
//!
//!     GET   /user                                           {login}
//!     GET   /repos/O/R/pulls/N                              the pull request
//!     GET   /repos/O/R/pulls/N/files?page=P                 {files, next}
//!     GET   /repos/O/R/compare/BASE...HEAD                  {files, next, status, truncated}
//!     GET   /repos/O/R/contents/PATH?ref=SHA                {text, size}
//!     GET   /repos/O/R/search?q=WORDS&ref=SHA               {items: [{path, lines: [{number, text}]}]}
//!     GET   /repos/O/R/issues/N/comments?page=P             {comments, next}
//!     POST  /repos/O/R/issues/N/comments {body}             {id}
//!     PATCH /repos/O/R/issues/comments/ID {body}            {id}
//!     DELETE /repos/O/R/issues/comments/ID                  {}
//!     GET   /repos/O/R/collaborators/USER/permission        {permission, role}
//!
//! Errors are {error, status}; 429 has Retry-After, and `uncertain` says that a POST
//! may have been done all the same. Config: GITHUB_API, GITHUB_TIMEOUT_MS.

// Natively only the tests run: the handler is for wasm.
#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]

mod api;
mod shape;
mod text;

use api::{Answer, Api, Ask, Host, Refusal, Wire};
use faas::json::Json;
use faas::v1::config;
use faas::{json_string, Request, Response};

const PUBLIC_API: &str = "https://api.github.com";
const TIMEOUT_MS: u64 = 20_000;
const PER_PAGE: u64 = 100;
const MAX_PAGE: u64 = 1000;
/// GitHub's own limit of a comparison.
const COMPARISON_FILES: usize = 300;
/// GitHub's own limit of a comment.
const MAX_COMMENT_CHARS: usize = 65_536;
const MAX_QUERY_CHARS: usize = 128;
/// How much of a search is looked up at the commit in question.
const SEARCH_FILES: usize = 5;
const SEARCH_LINES: usize = 20;
const SEARCH_LINE_CHARS: usize = 200;

fn github(request: &Request) -> Response {
    let setting = |name| config(name).ok().flatten().filter(|value| !value.is_empty());
    let base = setting("GITHUB_API").unwrap_or_else(|| PUBLIC_API.to_owned());
    let timeout_ms = setting("GITHUB_TIMEOUT_MS").and_then(|text| text.parse().ok()).unwrap_or(TIMEOUT_MS);
    let host = Host::new(request.deadline_ms, timeout_ms);
    let answer = respond(&host, base.trim_end_matches('/'), request);
    if let Err(refusal) = &answer {
        eprintln!("{} {}: {} {}", request.method, request.path, refusal.status, refusal.error);
    }
    response(answer)
}

fn response(answer: Result<(u16, String), Refusal>) -> Response {
    let refusal = match answer {
        Ok((status, json)) => return Response::json(json).with_status(status),
        Err(refusal) => refusal,
    };
    let uncertain = if refusal.uncertain { ",\"uncertain\":true" } else { "" };
    let json = format!("{{\"error\":{},\"status\":{}{uncertain}}}", json_string(&refusal.error), refusal.status);
    let response = Response::json(json).with_status(refusal.status);
    match refusal.retry_after_s {
        Some(seconds) => response.header("retry-after", seconds.to_string()),
        None => response,
    }
}

/// The funnel: table, checked parts, GitHub, what callers get of its answer.
fn respond(wire: &dyn Wire, base: &str, request: &Request) -> Result<(u16, String), Refusal> {
    let api = Api { wire, base };
    let segments: Vec<&str> = request.path.split('/').skip(1).collect();
    if let ("GET", ["user"]) = (request.method, segments.as_slice()) {
        return Ok((200, shape::user(&api.send(&Ask::get("/user".to_owned()))?.json()?)));
    }
    let (repo, rest) = match segments.as_slice() {
        ["repos", owner, name, rest @ ..] if is_name(owner) && is_name(name) => (format!("{owner}/{name}"), rest),
        _ => return Err(not_here()),
    };
    let at = |rest: String| Ask::get(format!("/repos/{repo}{rest}"));
    match (request.method, rest) {
        ("GET", ["pulls", n]) => {
            let n = number(n)?;
            Ok((200, shape::pull(&api.send(&at(format!("/pulls/{n}")))?.json()?)))
        }
        ("GET", ["pulls", n, "files"]) => {
            let (n, page) = (number(n)?, page(request)?);
            let answer = api.send(&at(format!("/pulls/{n}/files?per_page={PER_PAGE}&page={page}")))?;
            Ok((200, shape::files(&answer.json()?, next(&answer, page))))
        }
        ("GET", ["compare", refs]) => {
            let (old, new) = refs.split_once("...").ok_or_else(not_here)?;
            let (old, new) = (reference(old)?, reference(new)?);
            if page(request)? > 1 {
                return Ok((200, shape::comparison(&Json::Null, COMPARISON_FILES)));
            }
            // Pages are of commits; the first one has all files.
            let answer = api.send(&at(format!("/compare/{old}...{new}?per_page=1")))?;
            Ok((200, shape::comparison(&answer.json()?, COMPARISON_FILES)))
        }
        ("GET", ["contents", path @ ..]) if !path.is_empty() => {
            let (text, size) = contents(&api, &repo, &file_path(path)?, &query_reference(request)?)?;
            Ok((200, shape::contents(text.as_deref(), size)))
        }
        ("GET", ["search"]) => search(&api, &repo, request),
        ("GET", ["issues", n, "comments"]) => {
            let (n, page) = (number(n)?, page(request)?);
            let answer = api.send(&at(format!("/issues/{n}/comments?per_page={PER_PAGE}&page={page}")))?;
            Ok((200, shape::comments(&answer.json()?, next(&answer, page))))
        }
        ("POST", ["issues", n, "comments"]) => {
            let ask = at(format!("/issues/{}/comments", number(n)?));
            let answer = api.send(&Ask { method: "POST", body: Some(comment(request)?), ..ask })?;
            Ok((201, shape::id(&answer.json()?)))
        }
        ("PATCH", ["issues", "comments", id]) => {
            let ask = at(format!("/issues/comments/{}", number(id)?));
            let answer = api.send(&Ask { method: "PATCH", body: Some(comment(request)?), ..ask })?;
            Ok((200, shape::id(&answer.json()?)))
        }
        ("DELETE", ["issues", "comments", id]) => {
            let ask = at(format!("/issues/comments/{}", number(id)?));
            api.send(&Ask { method: "DELETE", ..ask })?;
            // GitHub's 204 has no body; callers of this function always get JSON.
            Ok((200, "{}".to_owned()))
        }
        ("GET", ["collaborators", user, "permission"]) => {
            let user = login(user)?;
            Ok((200, shape::permission(&api.send(&at(format!("/collaborators/{user}/permission")))?.json()?)))
        }
        _ => Err(not_here()),
    }
}

fn not_here() -> Refusal {
    Refusal::new(404, "this function has no such operation; its source lists those that it has")
}

fn bad(what: &str) -> Refusal {
    Refusal::new(400, what)
}

fn next(answer: &Answer, page: u64) -> Option<u64> {
    answer.header("link").and_then(|link| text::next_page(link, page))
}

// ------------------------------------------- parts of requests, as GitHub is sent them --

/// An owner or a repository, as they are written: no escapes, and not `..`.
fn is_name(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=100).contains(&text.len()) && text.bytes().all(known) && text != "." && text != ".."
}

/// A number of a pull request, or the id of a comment.
fn number(text: &str) -> Result<u64, Refusal> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number > 0 && *number < 1 << 53).ok_or_else(not_here)
}

fn page(request: &Request) -> Result<u64, Refusal> {
    match request.query_value("page") {
        None => Ok(1),
        Some(text) => text
            .parse()
            .ok()
            .filter(|page| (1..=MAX_PAGE).contains(page))
            .ok_or_else(|| bad("page is not a number from 1 to 1000")),
    }
}

/// A user's name, percent-encoded: `dependabot[bot]` has brackets.
fn login(segment: &str) -> Result<String, Refusal> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_[]".contains(&byte);
    let is_login = |text: &String| (1..=100).contains(&text.len()) && text.bytes().all(known);
    text::decode(segment).filter(is_login).map(|text| text::encode(&text)).ok_or_else(|| bad("no name of a user"))
}

/// A commit, branch or tag, percent-encoded.
///
/// Source: git-check-ref-format(1).
fn checked_reference(text: &str) -> Result<String, Refusal> {
    let wrong = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    if text.is_empty() || text.len() > 255 || text.contains("..") || text.starts_with('-') || text.chars().any(wrong) {
        return Err(bad("no commit, branch or tag; a commit's SHA is best"));
    }
    Ok(text::encode(text))
}

fn reference(segment: &str) -> Result<String, Refusal> {
    checked_reference(&text::decode(segment).ok_or_else(|| bad("no commit, branch or tag: it is not UTF-8"))?)
}

/// `?ref=…` to append, empty without one.
fn query_reference(request: &Request) -> Result<String, Refusal> {
    match request.query_value("ref") {
        None => Ok(String::new()),
        Some(text) => Ok(format!("?ref={}", checked_reference(&text)?)),
    }
}

/// A path in a repository, percent-encoded, its slashes kept.
fn file_path(segments: &[&str]) -> Result<String, Refusal> {
    let mut out = Vec::with_capacity(segments.len());
    for segment in segments {
        let name = text::decode(segment).unwrap_or_default();
        if name.is_empty() || name == "." || name == ".." || name.contains(|c| c == '/' || c == '\0') {
            return Err(bad("no path of a file: each segment is a percent-encoded name in UTF-8"));
        }
        out.push(text::encode(&name));
    }
    Ok(out.join("/"))
}

/// What a comment is made of: its text, and nothing else that was sent.
fn comment(request: &Request) -> Result<String, Refusal> {
    let json = std::str::from_utf8(request.body).ok().and_then(Json::parse);
    let body = json.as_ref().and_then(|json| json.get("body")).and_then(Json::text).unwrap_or("");
    if body.is_empty() {
        return Err(bad("the request's body is not {\"body\": \"…\"}"));
    }
    if body.chars().count() > MAX_COMMENT_CHARS {
        return Err(Refusal::new(422, "a comment has 65536 characters at most; shorten it"));
    }
    Ok(format!("{{\"body\":{}}}", json_string(body)))
}

// ----------------------------------------------------------------- files and searches --

/// A file's text and size; no text where it is binary, over 1 MiB, or no file, but a folder or a symbolic link.
///
/// GitHub follows a link to a file in the repository: it answers the target's content under the link's path, as
/// type "file". A path that looks harmless would so show any other file. Only the SHA is still that of the link
/// itself, so a text counts that has the SHA of the answer.
fn contents(api: &Api, repo: &str, path: &str, reference: &str) -> Result<(Option<String>, f64), Refusal> {
    let ask = Ask::get(format!("/repos/{repo}/contents/{path}{reference}"));
    let json = api.send(&Ask { accept: "application/vnd.github.object+json", ..ask })?.json()?;
    let size = json.get("size").and_then(Json::number).unwrap_or(0.0);
    let member = |name| json.get(name).and_then(Json::text);
    // Folders and submodules have no content, large files an encoding of "none".
    let encoded = if member("encoding") == Some("base64") { member("content") } else { None };
    let sha = member("sha").unwrap_or("");
    let bytes = encoded.and_then(text::base64).filter(|bytes| text::blob_sha(bytes).eq_ignore_ascii_case(sha));
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok((text.filter(|text| !text.contains('\0')), size))
}

/// Files of the default branch that have the words, by GitHub's index; lines of them as
/// they are at the commit in question. A search that fails finds nothing: it is a tool
/// that callers can do without.
fn search(api: &Api, repo: &str, request: &Request) -> Result<(u16, String), Refusal> {
    let words = plain_words(&request.query_value("q").unwrap_or_default());
    if words.is_empty() {
        return Err(bad("q has nothing to search for"));
    }
    let reference = query_reference(request)?;
    let query = text::encode(&format!("\"{words}\" repo:{repo}"));
    let found = api.send(&Ask::get(format!("/search/code?q={query}&per_page=20"))).and_then(|answer| answer.json());
    let found = match found {
        Ok(found) => found,
        Err(refusal) => return Ok((200, shape::found(&[], Some(&refusal.error)))),
    };
    let mut items = Vec::new();
    for item in found.get("items").and_then(Json::array).unwrap_or(&[]).iter().take(SEARCH_FILES) {
        let full_name = item.get("repository").and_then(|repo| repo.get("full_name")).and_then(Json::text);
        let path = match item.get("path").and_then(Json::text) {
            Some(path) if full_name.map_or(false, |name| name.eq_ignore_ascii_case(repo)) => path,
            _ => continue,
        };
        let encoded = path.split('/').map(text::encode).collect::<Vec<_>>().join("/");
        // Not there at that commit, or no text: then it is no find either.
        if let Ok((Some(text), _)) = contents(api, repo, &encoded, &reference) {
            let lines = lines_with(&text, &words);
            if !lines.is_empty() && !text.lines().any(is_private_key) {
                items.push((path.to_owned(), lines));
            }
        }
    }
    Ok((200, shape::found(&items, None)))
}

/// One phrase without quotes: nothing in it can name another repository.
fn plain_words(query: &str) -> String {
    let spaced: String = query
        .chars()
        .take(MAX_QUERY_CHARS)
        .map(|c| if c.is_control() || c == '"' || c == '\\' { ' ' } else { c })
        .collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a line begins a private key: what else its file has is none of a caller's business either.
fn is_private_key(line: &str) -> bool {
    line.contains("-----BEGIN ") && line.contains("PRIVATE KEY")
}

fn lines_with(text: &str, words: &str) -> Vec<(usize, String)> {
    let words = words.to_lowercase();
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.to_lowercase().contains(&words))
        .take(SEARCH_LINES)
        .map(|(index, line)| (index + 1, line.trim_end().chars().take(SEARCH_LINE_CHARS).collect()))
        .collect()
}

faas::handler!(github);

#[cfg(test)]
mod tests {
    use super::api::scripted::{answer, Script};
    use super::*;
    use faas::v1::Error;

    const BASE: &str = "https://api.test";

    fn ask(script: &Script, method: &str, target: &str, body: &str) -> Result<(u16, String), Refusal> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        respond(script, BASE, &Request { method, path, query, body: body.as_bytes(), ..Request::default() })
    }

    fn asked(answers: Vec<Result<Answer, Error>>, target: &str) -> (Result<(u16, String), Refusal>, Vec<String>) {
        let script = Script::new(answers);
        let done = ask(&script, "GET", target, "");
        let urls = script.urls().iter().map(|url| url.strip_prefix(BASE).unwrap().to_owned()).collect();
        (done, urls)
    }

    fn ok(body: &str) -> Result<Answer, Error> {
        answer(200, &[], body)
    }

    /// A file as GitHub's contents API has it.
    fn file(content: &[u8]) -> String {
        format!(
            "{{\"type\": \"file\", \"size\": {}, \"sha\": \"{}\", \"encoding\": \"base64\", \"content\": \"{}\"}}",
            content.len(),
            text::blob_sha(content),
            text::to_base64(content)
        )
    }

    #[test]
    fn everything_outside_of_the_table_is_refused_unsent() {
        for (method, path) in [
            ("GET", "/"), ("GET", ""), ("GET", "/github"), ("GET", "/user/"), ("GET", "/user/repos"), ("POST", "/user"),
            ("GET", "/repos/o/r"), ("GET", "/repos/o/r/pulls"), ("GET", "/repos/o/r/pulls/x"),
            ("GET", "/repos/o/r/pulls/0"), ("GET", "/repos/o/r/pulls/+1"), ("GET", "/repos/o/r/pulls/99999999999999999"),
            ("PATCH", "/repos/o/r/pulls/1"), ("PUT", "/repos/o/r/pulls/1/merge"), ("GET", "/repos/o/r/pulls/1/commits"),
            ("DELETE", "/repos/o/r/issues/1/comments"), ("DELETE", "/repos/o/r/issues/comments/x"),
            ("DELETE", "/repos/o/r/issues/comments"), ("DELETE", "/repos/o/r"), ("GET", "/repos/o/r/issues/comments/1"),
            ("POST", "/repos/o/r/issues/1/labels"), ("PUT", "/repos/o/r/contents/a"), ("GET", "/repos/o/r/contents"),
            ("PUT", "/repos/o/r/collaborators/u/permission"), ("GET", "/repos/o/r/collaborators/u"),
            ("GET", "/repos/../r/pulls/1"), ("GET", "/repos/o/../pulls/1"), ("GET", "/repos/o%2F/r/pulls/1"),
            ("GET", "/repos/o/r%3F/pulls/1"), ("GET", "//repos/o/r/pulls/1"), ("GET", "/repos//r/pulls/1"),
            ("GET", "/orgs/o"), ("GET", "/search/code"), ("get", "/user"), ("GET", "/repos/o/r/compare/abc"),
        ] {
            let refusal = ask(&Script::new(vec![]), method, path, "{\"body\": \"x\"}").unwrap_err();
            assert_eq!(refusal.status, 404, "{method} {path}");
        }
    }

    #[test]
    fn parts_that_are_none_are_refused_unsent() {
        for target in [
            "/repos/o/r/pulls/1/files?page=0", "/repos/o/r/pulls/1/files?page=x", "/repos/o/r/pulls/1/files?page=1001",
            "/repos/o/r/contents/..", "/repos/o/r/contents/a/%2e%2E/b", "/repos/o/r/contents/a//b",
            "/repos/o/r/contents/a%2Fb", "/repos/o/r/contents/%ff", "/repos/o/r/contents/a?ref=x..y",
            "/repos/o/r/contents/a?ref=", "/repos/o/r/contents/a?ref=x%0Ay", "/repos/o/r/compare/a%20b...c",
            "/repos/o/r/compare/...c", "/repos/o/r/collaborators/a%2Fb/permission", "/repos/o/r/search",
            "/repos/o/r/search?q=%22%20%22",
        ] {
            assert_eq!(asked(vec![], target).0.unwrap_err().status, 400, "{target}");
        }
    }

    #[test]
    fn pages_are_of_a_hundred_and_name_the_next_one() {
        let link = "<https://api.test/x?per_page=100&page=3>; rel=\"next\"";
        let (done, urls) = asked(vec![answer(200, &[("Link", link)], "[]")], "/repos/o/r/pulls/5/files?page=2");
        assert_eq!(done.unwrap(), (200, "{\"files\":[],\"next\":3}".to_owned()));
        assert_eq!(urls, ["/repos/o/r/pulls/5/files?per_page=100&page=2"]);
        let (done, _) = asked(vec![ok("[{\"id\": 8, \"body\": \"x\", \"user\": null}]")], "/repos/o/r/issues/5/comments");
        let comments = "{\"comments\":[{\"id\":8,\"user\":null,\"body\":\"x\"}],\"next\":null}";
        assert_eq!(done.unwrap(), (200, comments.to_owned()));
    }

    #[test]
    fn paths_and_commits_are_encoded_anew() {
        let file = ok(&file("ä\\\n".as_bytes()));
        let (done, urls) = asked(vec![file], "/repos/o/r/contents/%C3%9Cb%20er/a+b%252e?ref=feature/x%26y");
        assert_eq!(done.unwrap().1, "{\"text\":\"ä\\\\\\u000a\",\"size\":4}");
        assert_eq!(urls, ["/repos/o/r/contents/%C3%9Cb%20er/a%2Bb%252e?ref=feature%2Fx%26y"]);
        let (_, urls) = asked(vec![ok("{}")], "/repos/o/r/compare/abc...topic%2Fone");
        assert_eq!(urls, ["/repos/o/r/compare/abc...topic%2Fone?per_page=1"]);
        let (_, urls) = asked(vec![ok("{}")], "/repos/o/r/collaborators/dependabot%5Bbot%5D/permission");
        assert_eq!(urls, ["/repos/o/r/collaborators/dependabot%5Bbot%5D/permission"]);
    }

    #[test]
    fn what_is_no_text_is_null() {
        for (json, expected) in [
            (&*file(b"\0\x01"), "{\"text\":null,\"size\":2}"),
            (&*file(b"\xff"), "{\"text\":null,\"size\":1}"),
            ("{\"size\": 2000000, \"encoding\": \"none\", \"content\": \"\"}", "{\"text\":null,\"size\":2000000}"),
            (&*file(b""), "{\"text\":\"\",\"size\":0}"),
            ("{\"type\": \"dir\", \"entries\": []}", "{\"text\":null,\"size\":0}"),
        ] {
            assert_eq!(asked(vec![ok(json)], "/repos/o/r/contents/a").0.unwrap().1, expected);
        }
    }

    #[test]
    fn a_link_does_not_show_what_it_leads_to() {
        // As recorded: the link's text is "a-file-with-content", the content that of the file.
        let link = |sha: &str| {
            format!("{{\"type\": \"file\", \"size\": 22, {sha}\"encoding\": \"base64\", \
                     \"content\": \"dGhhbmtzIGZvciByZWFkaW5nIG1lCg==\\n\"}}")
        };
        let shown = "{\"text\":\"thanks for reading me\\u000a\",\"size\":22}";
        let hidden = "{\"text\":null,\"size\":22}";
        for (sha, expected) in [
            ("\"sha\": \"dbb84a81d2b1b5eb4077c9b72b7497eb16ed9bf6\", ", hidden),
            ("", hidden),
            ("\"sha\": null, ", hidden),
            ("\"sha\": \"\", ", hidden),
            (&format!("\"sha\": \"{}\", ", text::blob_sha(b"thanks for reading me\n")), shown),
        ] {
            assert_eq!(asked(vec![ok(&link(sha))], "/repos/o/r/contents/a").0.unwrap().1, expected, "{sha}");
            let found = ok("{\"items\": [{\"path\": \"a\", \"repository\": {\"full_name\": \"o/r\"}}]}");
            let searched = asked(vec![found, ok(&link(sha))], "/repos/o/r/search?q=reading").0.unwrap().1;
            assert_eq!(searched.contains("thanks"), expected == shown, "{sha}");
        }
    }

    #[test]
    fn a_comment_is_its_text_alone() {
        let script = Script::new(vec![answer(201, &[], "{\"id\": 4}")]);
        let body = "{\"body\": \"hi\\n\", \"in_reply_to\": 7}";
        assert_eq!(ask(&script, "POST", "/repos/o/r/issues/5/comments", body), Ok((201, "{\"id\":4}".to_owned())));
        assert_eq!(script.sent.borrow()[0].1.body.as_deref(), Some("{\"body\":\"hi\\u000a\"}"));
        let long = format!("{{\"body\": \"{}\"}}", "ä".repeat(MAX_COMMENT_CHARS + 1));
        for (body, status) in [("", 400), ("{}", 400), ("{\"body\": 1}", 400), ("{\"body\": \"\"}", 400), (&long, 422)] {
            let refusal = ask(&Script::new(vec![]), "PATCH", "/repos/o/r/issues/comments/4", body).unwrap_err();
            assert_eq!(refusal.status, status);
        }
    }

    #[test]
    fn a_search_stays_in_its_repository_and_at_its_commit() {
        let found = "{\"items\": [{\"path\": \"a b.rs\", \"repository\": {\"full_name\": \"O/r\"}},
            {\"path\": \"theirs\", \"repository\": {\"full_name\": \"o/other\"}},
            {\"path\": \"gone\", \"repository\": {\"full_name\": \"o/r\"}}]}";
        let file = &*file(b"one\nTwo x\nthree two X\n");
        let target = "/repos/o/r/search?q=two+x%22+repo:o/secret&ref=abc";
        let (done, urls) = asked(vec![ok(found), ok(file), answer(404, &[], "{}")], target);
        assert_eq!(done.unwrap().1, "{\"items\":[]}", "no line has all of the phrase");
        assert_eq!(
            urls,
            [
                "/search/code?q=%22two%20x%20repo%3Ao%2Fsecret%22%20repo%3Ao%2Fr&per_page=20",
                "/repos/o/r/contents/a%20b.rs?ref=abc",
                "/repos/o/r/contents/gone?ref=abc",
            ]
        );
        let (done, _) = asked(vec![ok(found), ok(file), answer(404, &[], "{}")], "/repos/o/r/search?q=two+x&ref=abc");
        assert_eq!(
            done.unwrap().1,
            "{\"items\":[{\"path\":\"a b.rs\",\"lines\":[{\"number\":2,\"text\":\"Two x\"},\
             {\"number\":3,\"text\":\"three two X\"}]}]}"
        );
    }

    #[test]
    fn a_search_finds_nothing_in_a_file_with_a_private_key() {
        let found = "{\"items\": [{\"path\": \"a\", \"repository\": {\"full_name\": \"o/r\"}}]}";
        for (head, shown) in [
            ("-----BEGIN PRIVATE KEY-----", false),
            ("key = '-----BEGIN OPENSSH PRIVATE KEY-----", false),
            ("-----BEGIN PUBLIC KEY-----", true),
        ] {
            let text = format!("needle\n{head}\nMIIE\n");
            let (done, _) = asked(vec![ok(found), ok(&file(text.as_bytes()))], "/repos/o/r/search?q=needle");
            assert_eq!(done.unwrap().1.contains("\"number\":1"), shown, "{head}");
        }
    }

    #[test]
    fn a_comment_is_deleted_and_one_that_is_gone_is_a_404() {
        let script = Script::new(vec![answer(502, &[], ""), answer(204, &[], "")]);
        let target = "/repos/o/r/issues/comments/4";
        assert_eq!(ask(&script, "DELETE", target, ""), Ok((200, "{}".to_owned())));
        let sent = script.sent.borrow();
        assert_eq!((sent[1].0.as_str(), sent[1].1.method), ("https://api.test/repos/o/r/issues/comments/4", "DELETE"));
        assert_eq!(sent[1].1.body, None);
        let gone = Script::new(vec![answer(404, &[], "{\"message\": \"Not Found\"}")]);
        assert_eq!(ask(&gone, "DELETE", target, "").unwrap_err().status, 404);
    }

    #[test]
    fn a_search_that_fails_finds_nothing() {
        let refused = answer(403, &[], "{\"message\": \"Resource not accessible\"}");
        let (done, _) = asked(vec![refused], "/repos/o/r/search?q=x");
        assert_eq!(
            done.unwrap(),
            (200, "{\"items\":[],\"unsupported\":\"GitHub: 403 Resource not accessible\"}".to_owned())
        );
    }

    #[test]
    fn refusals_are_json_with_their_status() {
        let refusal = Refusal { retry_after_s: Some(9), uncertain: true, ..Refusal::new(429, "a \"limit\"") };
        let refused = response(Err(refusal));
        assert_eq!(refused.status, 429);
        assert_eq!(refused.body, b"{\"error\":\"a \\\"limit\\\"\",\"status\":429,\"uncertain\":true}");
        assert!(refused.headers.contains(&("retry-after".to_owned(), "9".to_owned())));
    }

    #[test]
    fn an_answer_that_is_no_json_is_a_502() {
        assert_eq!(asked(vec![ok("<html>")], "/user").0.unwrap_err().status, 502);
    }
}
