// SPDX-License-Identifier: Apache-2.0
//! JSON schemas: does a value conform, and what conforms of an answer that was cut off.
//!
//! The keywords that schemas for models use; others are taken as met. Resident models
//! follow the whole schema by a grammar, so this is for endpoints, which may not, and
//! for answers that ended in the middle.

use faas::json::Json;

/// References may go round in a circle.
const MAX_DEPTH: usize = 64;

/// Whether `value` is what `schema` wants.
pub fn conforms(value: &Json, schema: &Json) -> bool {
    check(value, schema, schema, 0)
}

fn check(value: &Json, schema: &Json, root: &Json, depth: usize) -> bool {
    if depth > MAX_DEPTH {
        return false;
    }
    if let Json::Bool(admits) = schema {
        return *admits;
    }
    let member = |name: &str| schema.get(name);
    if let Some(Json::Text(reference)) = member("$ref") {
        return match resolve(reference, root) {
            Some(target) => check(value, target, root, depth + 1),
            None => false,
        };
    }
    let ok_type = match member("type") {
        Some(Json::Text(name)) => is_type(value, name),
        Some(Json::Array(names)) => names.iter().filter_map(Json::text).any(|name| is_type(value, name)),
        _ => true,
    };
    let ok_enum = member("enum").and_then(Json::array).map_or(true, |values| values.contains(value));
    let ok_const = member("const").map_or(true, |wanted| wanted == value);
    if !(ok_type && ok_enum && ok_const) {
        return false;
    }
    let alternatives = |name: &str| member(name).and_then(Json::array);
    for name in ["anyOf", "oneOf"] {
        if let Some(list) = alternatives(name) {
            if !list.iter().any(|one| check(value, one, root, depth + 1)) {
                return false;
            }
        }
    }
    if let Some(list) = alternatives("allOf") {
        if !list.iter().all(|one| check(value, one, root, depth + 1)) {
            return false;
        }
    }
    let within = |size: f64, least: &str, most: &str| {
        let number = |name: &str| schema.get(name).and_then(Json::number);
        number(least).map_or(true, |n| size >= n) && number(most).map_or(true, |n| size <= n)
    };
    match value {
        Json::Number(number) => within(*number, "minimum", "maximum"),
        Json::Text(text) => within(text.chars().count() as f64, "minLength", "maxLength"),
        Json::Array(elements) => {
            within(elements.len() as f64, "minItems", "maxItems")
                && member("items")
                    .map_or(true, |one| elements.iter().all(|element| check(element, one, root, depth + 1)))
        }
        Json::Object(members) => {
            let required = member("required").and_then(Json::array).unwrap_or(&[]);
            let properties = member("properties");
            required.iter().filter_map(Json::text).all(|name| value.get(name).is_some())
                && members.iter().all(|(name, value)| {
                    match (properties.and_then(|all| all.get(name)), member("additionalProperties")) {
                        (Some(one), _) | (None, Some(one)) => check(value, one, root, depth + 1),
                        (None, None) => true,
                    }
                })
        }
        _ => true,
    }
}

fn is_type(value: &Json, name: &str) -> bool {
    match value {
        Json::Null => name == "null",
        Json::Bool(_) => name == "boolean",
        Json::Number(number) => name == "number" || name == "integer" && number.fract() == 0.0,
        Json::Text(_) => name == "string",
        Json::Array(_) => name == "array",
        Json::Object(_) => name == "object",
    }
}

/// Keywords that OpenAI's strict mode refuses.
const NOT_STRICT: &[&str] = &[
    "allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
    "default", "minLength", "maxLength",
];

/// Whether OpenAI's strict mode takes `schema`: all properties of its objects are required, and no others admitted.
///
/// Source: platform.openai.com, "Structured model outputs", "Supported schemas".
pub fn is_strict(schema: &Json) -> bool {
    schema.get("type").and_then(Json::text) == Some("object") && schema.get("anyOf").is_none() && strict(schema)
}

fn strict(schema: &Json) -> bool {
    let members = |name: &str| match schema.get(name) {
        Some(Json::Object(members)) => members.as_slice(),
        _ => &[],
    };
    let is = |wanted: &str| match schema.get("type") {
        Some(Json::Text(name)) => name == wanted,
        Some(Json::Array(names)) => names.iter().any(|name| name.text() == Some(wanted)),
        _ => false,
    };
    let has_any = |names: &[&str]| names.iter().any(|name| schema.get(name).is_some());
    if !has_any(&["type", "enum", "const", "anyOf", "$ref"]) || has_any(NOT_STRICT) {
        return false;
    }
    if is("object") || schema.get("properties").is_some() {
        let required = schema.get("required").and_then(Json::array).unwrap_or(&[]);
        let is_required = |name: &String| required.iter().any(|one| one.text() == Some(name));
        let is_closed = schema.get("additionalProperties") == Some(&Json::Bool(false));
        let has_properties = matches!(schema.get("properties"), Some(Json::Object(_)));
        if !(is_closed && has_properties && members("properties").iter().all(|(name, _)| is_required(name))) {
            return false;
        }
    }
    if is("array") && schema.get("items").is_none() {
        return false;
    }
    let inner = ["properties", "$defs", "definitions"].into_iter().flat_map(members).map(|(_, one)| one);
    let alternatives = schema.get("anyOf").and_then(Json::array).unwrap_or(&[]);
    inner.chain(alternatives).chain(schema.get("items")).all(strict)
}

/// `#/$defs/name` and the like.
fn resolve<'a>(reference: &str, root: &'a Json) -> Option<&'a Json> {
    let path = reference.strip_prefix('#')?;
    path.split('/').skip(1).try_fold(root, |at, name| at.get(&name.replace("~1", "/").replace("~0", "~")))
}

/// An open bracket, and up to where its content is complete.
struct Open {
    closer: char,
    complete: usize,
}

/// What is left of JSON text that was cut off, closed so that it conforms; `None` when
/// nothing of it does.
///
/// Inside a list the element that is not complete goes, and so do those around it, until
/// the rest conforms. Without a list an unfinished string stays as far as it got.
pub fn mend(text: &str, schema: &Json) -> Option<String> {
    let mut open: Vec<Open> = Vec::new();
    let mut string_at = None; // where the string began that is not over
    let mut escape_at = None;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if string_at.is_some() {
            match byte {
                b'\\' => {
                    escape_at = Some(at);
                    match bytes.next() {
                        Some((_, b'u')) if text.len() < at + 6 => break,
                        Some(_) => escape_at = None,
                        None => break,
                    }
                }
                b'"' => string_at = None,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string_at = Some(at),
            b'{' => open.push(Open { closer: '}', complete: at + 1 }),
            b'[' => open.push(Open { closer: ']', complete: at + 1 }),
            b'}' | b']' => {
                open.pop()?;
                match open.last_mut() {
                    Some(outer) => outer.complete = at + 1,
                    None => return fits(text[..=at].to_owned(), schema), // whole; what may follow is none of it
                }
            }
            b',' => open.last_mut()?.complete = at,
            _ => {}
        }
    }
    let close = |mut whole: String, depth: usize| {
        whole.extend(open[..depth].iter().rev().map(|one| one.closer));
        fits(whole, schema)
    };
    let shortened = || (1..=open.len()).rev().find_map(|depth| close(text[..open[depth - 1].complete].to_owned(), depth));
    let closed = || {
        let end = string_at.map(|_| escape_at.unwrap_or(text.len()))?;
        close(format!("{}\"", &text[..end]), open.len())
    };
    if open.iter().any(|one| one.closer == ']') {
        shortened().or_else(closed)
    } else {
        closed().or_else(shortened)
    }
}

fn fits(text: String, schema: &Json) -> Option<String> {
    let value = Json::parse(&text)?;
    conforms(&value, schema).then_some(text)
}

/// The JSON in a model's text: all of it, or what is between the first bracket and the last
/// one, as in a fenced block.
pub fn json_in(text: &str) -> Option<&str> {
    let text = text.trim();
    if Json::parse(text).is_some() {
        return Some(text);
    }
    let start = text.find(|c| c == '{' || c == '[')?;
    let end = text.rfind(|c| c == '}' || c == ']')?;
    let inner = text.get(start..=end)?;
    Json::parse(inner).map(|_| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r##"{"type":"object","properties":{"summary":{"type":"string","maxLength":20},
        "findings":{"type":"array","items":{"$ref":"#/$defs/finding"}}},"required":["summary","findings"],
        "additionalProperties":false,"$defs":{"finding":{"type":"object","properties":{
        "line":{"type":"integer","minimum":1},"severity":{"enum":["high","low"]}},"required":["line","severity"]}}}"##;

    fn schema() -> Json {
        Json::parse(SCHEMA).unwrap()
    }

    #[test]
    fn values_conform_or_not() {
        for (text, conforming) in [
            (r#"{"summary":"s","findings":[]}"#, true),
            (r#"{"summary":"s","findings":[{"line":1,"severity":"low"}]}"#, true),
            (r#"{"summary":"s","findings":[{"line":0,"severity":"low"}]}"#, false),
            (r#"{"summary":"s","findings":[{"line":1.5,"severity":"low"}]}"#, false),
            (r#"{"summary":"s","findings":[{"line":1,"severity":"none"}]}"#, false),
            (r#"{"summary":"s","findings":[{"line":1}]}"#, false),
            (r#"{"summary":"much longer than twenty","findings":[]}"#, false),
            (r#"{"summary":"s"}"#, false),
            (r#"{"summary":"s","findings":[],"more":1}"#, false),
            (r#"{"summary":null,"findings":[]}"#, false),
            ("[]", false),
        ] {
            assert_eq!(conforms(&Json::parse(text).unwrap(), &schema()), conforming, "{text}");
        }
        let any = Json::parse(r#"{"anyOf":[{"type":["null","boolean"]},{"const":7}]}"#).unwrap();
        for (text, conforming) in [("null", true), ("true", true), ("7", true), ("8", false)] {
            assert_eq!(conforms(&Json::parse(text).unwrap(), &any), conforming, "{text}");
        }
        let circle = Json::parse(r##"{"$ref":"#"}"##).unwrap();
        assert!(!conforms(&Json::Null, &circle));
    }

    #[test]
    fn strict_schemas_require_all_that_they_admit() {
        let object = |more: &str| format!(r#"{{"type":"object","properties":{{"a":{{"type":"string"}}}}{more}}}"#);
        let closed = object(r#","required":["a"],"additionalProperties":false"#);
        let around = |inner: &str| {
            format!(r#"{{"type":"object","properties":{{"b":{inner}}},"required":["b"],"additionalProperties":false}}"#)
        };
        for (schema, strict) in [
            (closed.clone(), true),
            (object(r#","required":["a"]"#), false),
            (object(r#","additionalProperties":false"#), false),
            (object(r#","required":["b"],"additionalProperties":false"#), false),
            (object(r#","required":["a"],"additionalProperties":{"type":"string"}"#), false),
            (around(&closed), true),
            (around(&object("")), false),
            (around(&format!(r#"{{"type":"array","items":{closed}}}"#)), true),
            (around(&format!(r#"{{"type":"array","items":{}}}"#, object(""))), false),
            (around(r#"{"type":"array"}"#), false),
            (around(&format!(r#"{{"anyOf":[{{"type":"null"}},{closed}]}}"#)), true),
            (around(&format!(r#"{{"anyOf":[{{"type":"null"}},{}]}}"#, object(""))), false),
            (around(&format!(r#"{{"oneOf":[{closed}]}}"#)), false),
            (around(r#"{"type":["object","null"]}"#), false),
            (around(r#"{"enum":["a","b"]}"#), true),
            (around(r#"{"type":"string","maxLength":9}"#), false),
            (around("{}"), false),
            (around("true"), false),
            (closed.replace(r#""type":"object","#, r##""type":"object","$defs":{"d":{"type":"object"}},"##), false),
            (closed.replace("\"a\"", "\"properties\""), true),
            (format!(r#"{{"type":"array","items":{closed}}}"#), false),
            (r#"{"type":"object"}"#.to_owned(), false),
            ("{}".to_owned(), false),
        ] {
            assert_eq!(is_strict(&Json::parse(&schema).unwrap()), strict, "{schema}");
        }
    }

    #[test]
    fn what_was_cut_off_is_mended_to_what_conforms() {
        let whole = r#"{"summary":"a, \"b\" [","findings":[{"line":1,"severity":"low"},{"line":2,"severity":"high"}]}"#;
        let second = whole.find("}]}").unwrap();
        let list = whole.find("[{").unwrap() + 1;
        for end in 0..=whole.len() {
            let mended = mend(&whole[..end], &schema());
            match &mended {
                Some(text) => assert!(conforms(&Json::parse(text).unwrap(), &schema()), "{text}"),
                None => assert!(end < list, "{}", &whole[..end]),
            }
            if end >= list {
                let whole_ones = if end > second { 2 } else { usize::from(end >= list + 27) };
                assert_eq!(mended.unwrap().matches("line").count(), whole_ones, "{}", &whole[..end]);
            }
        }
        assert_eq!(mend(whole, &schema()).as_deref(), Some(whole));
    }

    #[test]
    fn an_unfinished_string_stays_where_there_is_no_list() {
        let schema = Json::parse(r#"{"type":"object","properties":{"answer":{"type":"string"}},"required":["answer"]}"#);
        for (text, mended) in [
            (r#"{"answer":"it is a"#, r#"{"answer":"it is a"}"#),
            (r#"{"answer":"x\"#, r#"{"answer":"x"}"#),
            (r#"{"answer":"x\u00"#, r#"{"answer":"x"}"#),
            (r#"{"answer":"x\n"#, r#"{"answer":"x\n"}"#),
        ] {
            assert_eq!(mend(text, schema.as_ref().unwrap()).as_deref(), Some(mended));
        }
        for text in ["", "{", "{\"answer", "{\"answer\":", "}", "nonsense"] {
            assert_eq!(mend(text, schema.as_ref().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn json_is_found_in_fences() {
        assert_eq!(json_in("```json\n{\"a\":1}\n```"), Some("{\"a\":1}"));
        assert_eq!(json_in(" [1] "), Some("[1]"));
        assert_eq!(json_in("} none {"), None);
        assert_eq!(json_in("none"), None);
    }
}
