// SPDX-License-Identifier: Apache-2.0
//! GitHub's documents, reduced to what callers need; what is not there is null.

use faas::json::Json;
use faas::json_string;

/// The member at the end of a chain of names; null when there is none.
fn at<'a>(json: &'a Json, names: &[&str]) -> &'a Json {
    names.iter().fold(json, |json, name| json.get(name).unwrap_or(&Json::Null))
}

fn scalar(json: &Json) -> String {
    match json {
        Json::Bool(value) => value.to_string(),
        Json::Number(value) => value.to_string(),
        Json::Text(text) => json_string(text),
        _ => "null".to_owned(),
    }
}

/// `{"name": …}` for each name, by the chain of members where it is found.
fn object(json: &Json, fields: &[(&str, &[&str])]) -> String {
    let members: Vec<String> =
        fields.iter().map(|(name, chain)| format!("{}:{}", json_string(name), scalar(at(json, chain)))).collect();
    format!("{{{}}}", members.join(","))
}

fn array(json: &Json, one: impl Fn(&Json) -> String) -> String {
    let elements: Vec<String> = json.array().unwrap_or(&[]).iter().map(one).collect();
    format!("[{}]", elements.join(","))
}

fn next(page: Option<u64>) -> String {
    page.map_or("null".to_owned(), |page| page.to_string())
}

/// A pull request.
pub fn pull(json: &Json) -> String {
    let plain = object(
        json,
        &[
            ("number", &["number"]),
            ("title", &["title"]),
            ("body", &["body"]),
            ("draft", &["draft"]),
            ("state", &["state"]),
            ("user", &["user", "login"]),
            ("changed_files", &["changed_files"]),
        ],
    );
    let head =
        object(at(json, &["head"]), &[("sha", &["sha"]), ("ref", &["ref"]), ("repo", &["repo", "full_name"])]);
    let base = object(at(json, &["base"]), &[("sha", &["sha"]), ("ref", &["ref"])]);
    format!("{},\"head\":{head},\"base\":{base}}}", &plain[..plain.len() - 1])
}

/// One changed file; `previous_filename`, `patch` and `commit`, that of the list, only where GitHub has them.
fn file(json: &Json) -> String {
    let mut fields: Vec<(&str, &[&str])> = vec![
        ("filename", &["filename"]),
        ("status", &["status"]),
        ("additions", &["additions"]),
        ("deletions", &["deletions"]),
        ("changes", &["changes"]),
        ("sha", &["sha"]),
    ];
    if json.get("previous_filename").is_some() {
        fields.push(("previous_filename", &["previous_filename"]));
    }
    if json.get("patch").is_some() {
        fields.push(("patch", &["patch"]));
    }
    let object = object(json, &fields);
    match commit(at(json, &["blob_url"]).text().unwrap_or("")) {
        Some(commit) => format!("{},\"commit\":{}}}", &object[..object.len() - 1], json_string(commit)),
        None => object,
    }
}

/// The commit that a file's page on GitHub is of: `https://HOST/OWNER/REPO/blob/COMMIT/PATH`.
fn commit(blob_url: &str) -> Option<&str> {
    let mut segments = blob_url.split('/').skip(5);
    let commit = if segments.next() == Some("blob") { segments.next()? } else { return None };
    (commit.len() >= 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| commit)
}

/// A page of changed files.
pub fn files(json: &Json, page: Option<u64>) -> String {
    format!("{{\"files\":{},\"next\":{}}}", array(json, file), next(page))
}

/// A comparison has all its files, 300 at most, on its first page.
pub fn comparison(json: &Json, limit: usize) -> String {
    let files = at(json, &["files"]);
    let truncated = files.array().map_or(false, |files| files.len() >= limit);
    format!(
        "{{\"files\":{},\"next\":null,\"status\":{},\"truncated\":{truncated}}}",
        array(files, file),
        scalar(at(json, &["status"])),
    )
}

/// A page of comments.
pub fn comments(json: &Json, page: Option<u64>) -> String {
    let one = |json: &Json| object(json, &[("id", &["id"]), ("user", &["user", "login"]), ("body", &["body"])]);
    format!("{{\"comments\":{},\"next\":{}}}", array(json, one), next(page))
}

/// The id of what was made or changed.
pub fn id(json: &Json) -> String {
    object(json, &[("id", &["id"])])
}

/// What a user may do in a repository; `role` tells maintainers from writers.
pub fn permission(json: &Json) -> String {
    object(json, &[("permission", &["permission"]), ("role", &["role_name"])])
}

/// Whose token it is.
pub fn user(json: &Json) -> String {
    object(json, &[("login", &["login"])])
}

/// A file's text, null where it has none; the size in bytes.
pub fn contents(text: Option<&str>, size: f64) -> String {
    format!("{{\"text\":{},\"size\":{size}}}", text.map_or("null".to_owned(), json_string))
}

/// What a search found; `unsupported` says why it found nothing.
pub fn found(items: &[(String, Vec<(usize, String)>)], unsupported: Option<&str>) -> String {
    let items: Vec<String> = items
        .iter()
        .map(|(path, lines)| {
            let lines: Vec<String> = lines
                .iter()
                .map(|(number, text)| format!("{{\"number\":{number},\"text\":{}}}", json_string(text)))
                .collect();
            format!("{{\"path\":{},\"lines\":[{}]}}", json_string(path), lines.join(","))
        })
        .collect();
    let unsupported = unsupported.map_or(String::new(), |why| format!(",\"unsupported\":{}", json_string(why)));
    format!("{{\"items\":[{}]{unsupported}}}", items.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_request_keeps_what_is_promised_and_nothing_else() {
        let json = Json::parse(
            r#"{"id": 1, "number": 7, "title": "A \"b\"", "body": null, "draft": false, "state": "open",
                "user": {"login": "ann", "id": 2}, "changed_files": 3, "url": "x",
                "head": {"sha": "h", "ref": "topic", "repo": null, "label": "l"},
                "base": {"sha": "b", "ref": "main", "repo": {"full_name": "o/r"}}}"#,
        )
        .unwrap();
        assert_eq!(
            pull(&json),
            "{\"number\":7,\"title\":\"A \\\"b\\\"\",\"body\":null,\"draft\":false,\"state\":\"open\",\
             \"user\":\"ann\",\"changed_files\":3,\"head\":{\"sha\":\"h\",\"ref\":\"topic\",\"repo\":null},\
             \"base\":{\"sha\":\"b\",\"ref\":\"main\"}}"
        );
    }

    #[test]
    fn files_have_patches_only_where_github_has_them() {
        let json = Json::parse(
            r#"[{"filename": "ä.rs", "status": "modified", "additions": 1, "deletions": 2, "changes": 3, "sha": "s",
                 "patch": "@@ -1 +1 @@", "raw_url": "x",
                 "blob_url": "https://github.com/o/blob/blob/6dcb09b5b57875f334f61aebed695e2e4193db5e/%C3%A4.rs"},
                {"filename": "b", "previous_filename": "a", "status": "renamed", "additions": 0, "deletions": 0,
                 "changes": 0, "sha": "t"}]"#,
        )
        .unwrap();
        assert_eq!(
            files(&json, Some(2)),
            "{\"files\":[{\"filename\":\"ä.rs\",\"status\":\"modified\",\"additions\":1,\"deletions\":2,\
             \"changes\":3,\"sha\":\"s\",\"patch\":\"@@ -1 +1 @@\",\
             \"commit\":\"6dcb09b5b57875f334f61aebed695e2e4193db5e\"},{\"filename\":\"b\",\"status\":\"renamed\",\
             \"additions\":0,\"deletions\":0,\"changes\":0,\"sha\":\"t\",\"previous_filename\":\"a\"}],\"next\":2}"
        );
        assert_eq!(files(&Json::Null, None), "{\"files\":[],\"next\":null}");
    }

    #[test]
    fn a_comparison_says_when_it_is_cut() {
        let json = Json::parse(r#"{"status": "ahead", "files": [{"filename": "a"}]}"#).unwrap();
        assert!(comparison(&json, 2).ends_with("\"status\":\"ahead\",\"truncated\":false}"));
        assert!(comparison(&json, 1).ends_with("\"truncated\":true}"));
    }

    #[test]
    fn large_ids_stay_exact() {
        let json = Json::parse(r#"{"id": 9007199254740991}"#).unwrap();
        assert_eq!(id(&json), "{\"id\":9007199254740991}");
    }
}
