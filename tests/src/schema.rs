//! Whether an answer is what an OpenAPI document says: the part of JSON Schema that ours use.

use serde_json::{Map, Value};

/// What is wrong with the body that a resource answered with 200, by the document; nothing if it is right.
pub fn violations(document: &Value, path: &str, method: &str, body: &Value) -> Vec<String> {
    let response = &document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"];
    if response.is_null() {
        return vec![format!("{method} {path}: the document has no schema for it")];
    }
    let mut found = Vec::new();
    check(document, response, body, &format!("{method} {path}"), &mut found);
    found
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).expect("a reference leads somewhere");
        return check(document, target, value, at, found);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|name| is(name, value)) {
        found.push(format!("{at}: {value} is no {types:?}"));
    }
    if let Some(known) = schema["enum"].as_array()
        && !known.contains(value)
    {
        found.push(format!("{at}: {value} is none of {known:?}"));
    }
    if let Some(items) = value.as_array().filter(|_| !schema["items"].is_null()) {
        items.iter().for_each(|item| check(document, &schema["items"], item, &format!("{at}[]"), found));
    }
    if let Some(fields) = value.as_object() {
        check_fields(document, schema, fields, at, found);
    }
}

fn check_fields(document: &Value, schema: &Value, fields: &Map<String, Value>, at: &str, found: &mut Vec<String>) {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    found.extend(required.filter(|name| !fields.contains_key(*name)).map(|name| format!("{at}: {name} is missing")));
    for (name, value) in fields {
        let at = format!("{at}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => found.push(format!("{at} is not in the document")),
            (Value::Null, Value::Null | Value::Bool(true)) => {}
            (Value::Null, others) => check(document, others, value, &at, found),
            (own, _) => check(document, own, value, &at, found),
        }
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other} is no type of JSON Schema"),
    }
}

#[cfg(test)]
mod tests {
    use super::violations;
    use serde_json::json;

    #[test]
    fn what_a_document_does_not_say_is_found() {
        let schema = json!({
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"$ref": "#/components/schemas/A"}, "b": {"type": ["integer", "null"]}},
        });
        let document = json!({
            "paths": {"/x": {"get": {"responses": {"200": {"content": {"application/json": {"schema": schema}}}}}}},
            "components": {"schemas": {"A": {"type": "array", "items": {"enum": [1, 2]}}}},
        });
        let wrong = |body| violations(&document, "/x", "get", &body).len();
        assert_eq!(wrong(json!({"a": [1, 2], "b": null})), 0);
        assert_eq!(wrong(json!({"a": [1, 3], "b": 1.5, "c": 0})), 3);
        assert_eq!(wrong(json!({"b": 7})), 1);
        assert_eq!(violations(&document, "/y", "get", &json!({})).len(), 1);
    }
}
