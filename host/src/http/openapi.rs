//! The OpenAPI 3.1 document of everything this server answers, as `/openapi.json` serves it.
//!
//! It is written by hand and is part of the contract: a route, a field or an error code is added there first. The tests
//! hold it to its own schemas; `x-errors` lists every stable error code.

/// The document, as JSON.
pub const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;
    use crate::error::{Error, Kind};
    use crate::http::problem::Problem;
    use crate::http::route;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).expect("the document is JSON")
    }

    fn operations(document: &Value) -> Vec<(String, String, Value)> {
        let paths = document["paths"].as_object().expect("paths");
        let operation =
            |path: &String, (method, operation): (&String, &Value)| (path.clone(), method.clone(), operation.clone());
        paths
            .iter()
            .flat_map(|(path, item)| item.as_object().expect("methods").iter().map(move |entry| operation(path, entry)))
            .collect()
    }

    /// What a `$ref` stands for; anything else as it is.
    fn resolve<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
        match value["$ref"].as_str() {
            Some(reference) => document
                .pointer(reference.strip_prefix('#').expect("a local reference"))
                .unwrap_or_else(|| panic!("{reference} leads nowhere")),
            None => value,
        }
    }

    fn visit(value: &Value, path: &str, see: &mut impl FnMut(&str, &Value)) {
        see(path, value);
        match value {
            Value::Object(members) => {
                members.iter().for_each(|(name, member)| visit(member, &format!("{path}/{name}"), see));
            }
            Value::Array(items) => items.iter().for_each(|item| visit(item, path, see)),
            _ => {}
        }
    }

    /// Why `value` does not fit `schema`, for the part of JSON Schema that the document uses.
    fn misfit(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let referred = (!schema["$ref"].is_null()).then(|| resolve(document, schema));
        let all = schema["allOf"].as_array().into_iter().flatten().chain(referred);
        if let Some(why) = all.filter_map(|part| misfit(document, part, value, at)).next() {
            return Some(why);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let fitting = choices.iter().filter(|choice| misfit(document, choice, value, at).is_none()).count();
            return (fitting != 1).then(|| format!("{at}: fits {fitting} of the choices"));
        }
        let is = |name: &str| match name {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("{at}: type {other}"),
        };
        let typed = match &schema["type"] {
            Value::String(name) => is(name),
            Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
            _ => true,
        };
        let listed = schema["enum"].as_array().is_none_or(|words| words.contains(value));
        let in_range = value.as_i64().is_none_or(|number| {
            schema["minimum"].as_i64().is_none_or(|min| min <= number)
                && schema["maximum"].as_i64().is_none_or(|max| number <= max)
        });
        if !typed || !listed || !in_range {
            return Some(format!("{at}: {value} is not {schema}"));
        }
        if let Some(members) = value.as_object() {
            let known = schema["properties"].as_object();
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !members.contains_key(name) {
                    return Some(format!("{at}: {name} is missing"));
                }
            }
            for (name, member) in members {
                let at = format!("{at}/{name}");
                let rest = &schema["additionalProperties"];
                let why = match known.and_then(|known| known.get(name)) {
                    Some(schema) => misfit(document, schema, member, &at),
                    None if rest == false => Some(format!("{at}: is not allowed")),
                    None => rest.is_object().then(|| misfit(document, rest, member, &at)).flatten(),
                };
                if why.is_some() {
                    return why;
                }
            }
        }
        let items = value.as_array().into_iter().flatten();
        items.enumerate().find_map(|(n, item)| misfit(document, &schema["items"], item, &format!("{at}/{n}")))
    }

    #[test]
    fn it_has_exactly_the_routes_that_are_served() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let written: BTreeSet<(String, String)> =
            operations(&document).into_iter().map(|(path, method, _)| (path, method)).collect();
        let expected: BTreeSet<(String, String)> = route::table()
            .flat_map(|(path, methods)| methods.iter().map(|method| (path.into(), method.as_str().to_lowercase())))
            .collect();
        assert_eq!(written, expected);
    }

    #[test]
    fn operations_are_named_once_and_say_what_they_answer() {
        let document = document();
        let mut names = BTreeSet::new();
        for (path, method, operation) in operations(&document) {
            let at = format!("{method} {path}");
            let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{at} has no operationId"));
            assert!(names.insert(name.to_owned()), "{name} names two operations");
            assert!(operation["summary"].is_string(), "{at}");
            let responses = operation["responses"].as_object().expect("responses");
            assert!(responses.keys().any(|status| status.starts_with('2')), "{at} never succeeds");
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let in_path: BTreeSet<&str> = parameters
                .map(|parameter| resolve(&document, parameter))
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let braces = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(in_path, braces, "{at}");
            let admin =
                ["/v1/plugins", "/v1/policies", "/v1/rules", "/v1/cluster"].iter().any(|root| path.starts_with(root));
            assert_eq!(responses.contains_key("401") && responses.contains_key("403"), admin, "{at}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_component_is_used() {
        let document = document();
        let mut used = BTreeSet::new();
        visit(&document, "", &mut |_, value| {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                resolve(&document, value);
                used.insert(reference.to_owned());
            }
        });
        for section in ["schemas", "parameters"] {
            for name in document["components"][section].as_object().expect("components").keys() {
                let reference = format!("#/components/{section}/{name}");
                assert!(used.contains(&reference), "nothing uses {reference}");
            }
        }
    }

    #[test]
    fn every_json_example_fits_its_schema() {
        let document = document();
        let mut examples = 0;
        visit(&document, "", &mut |path, value| {
            if path.ends_with("json") && value.get("example").is_some() {
                examples += 1;
                let why = misfit(&document, &value["schema"], &value["example"], path);
                assert_eq!(why, None);
            }
        });
        assert!(examples > 50, "only {examples} examples were seen");
    }

    #[test]
    fn an_example_that_does_not_fit_is_noticed() {
        let document = document();
        let schema = &document["components"]["schemas"]["AddRequest"];
        for text in [r#"{"amount":"1"}"#, r#"{"amount":1,"more":1}"#, "[]"] {
            let value = serde_json::from_str(text).expect("JSON");
            assert!(misfit(&document, schema, &value, "").is_some(), "{text}");
        }
        let schema = &document["components"]["schemas"]["BatchResults"];
        let value = serde_json::json!({"results": [{"id": "c", "outcome": "applied"}]});
        assert!(misfit(&document, schema, &value, "").is_some());
    }

    #[test]
    fn every_error_code_has_its_status_outcome_and_answer() {
        let document = document();
        let codes: Vec<&str> = document["components"]["schemas"]["ErrorCode"]["enum"]
            .as_array()
            .expect("codes")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let errors = document["x-errors"].as_array().expect("errors");
        let listed: Vec<&str> = errors.iter().filter_map(|error| error["code"].as_str()).collect();
        assert_eq!(listed, codes);
        let mut described: BTreeMap<u64, String> = BTreeMap::new();
        for response in document["components"]["responses"].as_object().expect("responses").values() {
            let status =
                response["content"]["application/problem+json"]["example"]["status"].as_u64().expect("a status");
            described.insert(status, response["description"].to_string());
        }
        for error in errors {
            let status = error["status"].as_u64().expect("a status");
            assert!(matches!(error["outcome"].as_str(), Some("not_applied" | "unknown")), "{error}");
            assert!(error["retryable"].is_boolean() && error["meaning"].is_string(), "{error}");
            let code = error["code"].as_str().expect("a code");
            assert!(described[&status].contains(&format!("`{code}`")), "{code} is not described under {status}");
        }
    }

    #[test]
    fn every_problem_of_the_server_is_listed_as_it_is_answered() {
        let document = document();
        let errors = document["x-errors"].as_array().expect("errors");
        let domain = Kind::ALL.map(|kind| (Problem::from(Error::new(kind, "")), kind.retryable()));
        let of_http = [
            Problem::MalformedJson(String::new()),
            Problem::MissingParameter("id"),
            Problem::MissingMember("match"),
            Problem::UnknownRoute,
            Problem::MethodNotAllowed { allow: Vec::new() },
            Problem::BodyTooLarge { bytes_max: 0 },
            Problem::BodyTooSlow,
            Problem::BodyBroken,
            Problem::Unauthorized,
            Problem::Forbidden(""),
        ];
        for (problem, retryable) in domain.into_iter().chain(of_http.map(|problem| (problem, false))) {
            let listed = errors.iter().find(|error| error["code"] == problem.code());
            let listed = listed.unwrap_or_else(|| panic!("{} is not listed", problem.code()));
            assert_eq!(listed["status"], problem.status().as_u16(), "{listed}");
            assert_eq!(listed["outcome"], problem.outcome().as_str(), "{listed}");
            assert_eq!(listed["retryable"], retryable, "{listed}");
        }
    }
}
