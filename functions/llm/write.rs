// SPDX-License-Identifier: Apache-2.0
//! JSON values as text again.

use faas::json::Json;
use faas::json_string;

/// `value` as compact JSON, members in their order.
pub fn write(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(value) if value.is_finite() => value.to_string(),
        Json::Number(_) => "null".to_owned(), // 1e999 was read as infinity, which JSON can't say
        Json::Text(text) => json_string(text),
        Json::Array(elements) => {
            let elements: Vec<String> = elements.iter().map(write).collect();
            format!("[{}]", elements.join(","))
        }
        Json::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(name, value)| format!("{}:{}", json_string(name), write(value))).collect();
            format!("{{{}}}", members.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_as_it_was() {
        let text = r#"{"b":[1,-2.5,true,null,"x\"\u000a\u00e4"],"a":{}}"#;
        let json = Json::parse(text).unwrap();
        assert_eq!(write(&json), "{\"b\":[1,-2.5,true,null,\"x\\\"\\u000a\u{e4}\"],\"a\":{}}");
        assert_eq!(Json::parse(&write(&json)), Some(json));
        assert_eq!(write(&Json::parse("1e999").unwrap()), "null");
    }
}
