//! Text into documents: YAML with several documents, or JSON, also several values one after the other.
//!
//! A key may appear once in a mapping: of two equal ones (also `8080` and `"8080"`, which are one key in JSON) every parser
//! keeps another, so that the file would mean one thing here and another there.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

mod lines;

pub use lines::lines;

/// All documents of a text. Bounded in memory: aliases cannot multiply without end.
///
/// # Errors
/// The text is neither YAML nor JSON, or a key comes twice; says where.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // JSON is parsed as such: faster, and its errors are clearer.
    if text.trim_start().starts_with('{') {
        match json(text) {
            Ok(documents) => return Ok(documents),
            // Not its syntax but its content, and YAML would say the same.
            Err(error) if error.is_data() => return Err(error.to_string()),
            // YAML that begins with a brace.
            Err(_) => {}
        }
    }
    let documents: Vec<Unique> =
        serde_saphyr::from_multiple_with_options(text, options(text)).map_err(|error| {
            let message = error.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
            message.split_whitespace().collect::<Vec<_>>().join(" ")
        })?;
    Ok(documents.into_iter().map(|Unique(value)| value).collect())
}

/// Bounds for reading a text.
fn options(text: &str) -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    if let Some(budget) = &mut options.budget {
        // Nodes and text are bounded by the file's size; what aliases may add is bounded separately.
        budget.max_events = text.len().saturating_add(1000);
        budget.max_nodes = text.len().saturating_add(1000);
        budget.max_total_scalar_bytes = text.len().saturating_mul(2).saturating_add(1000);
        budget.max_documents = text.len().saturating_add(1000);
        budget.max_depth = 200;
    }
    options
}

fn json(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Unique>();
    values.map(|value| value.map(|Unique(value)| value)).collect()
}

/// A value in whose mappings no key comes twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Self)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    #[expect(clippy::cast_precision_loss, reason = "as JSON does with a number that fits no integer")]
    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Number::from_f64(value as f64).map_or(Value::Null, Value::Number))
    }

    #[expect(clippy::cast_precision_loss, reason = "as JSON does with a number that fits no integer")]
    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Number::from_f64(value as f64).map_or(Value::Null, Value::Number))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Unique(value) = entries.next_value()?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate mapping key: {key}")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_comes_once() {
        for text in [
            "a: 1\na: 2\n",
            "a: {8080: 1, '8080': 2}\n",
            "a: {true: 1, 'true': 2}\n",
            r#"{"a": {"b": 1, "b": 2}}"#,
            r#"{"a": [{"b": 1, "b": 1}]}"#,
        ] {
            let error = documents(text).expect_err(text);
            assert!(error.contains("duplicate mapping key") && !error.contains("Policy"), "{error}");
        }
        let twice = documents("a: {x: 1}\nb: {x: 1}\nc: [{x: 1}, {x: 1}]\n");
        assert!(twice.is_ok(), "{twice:?}");
    }

    #[test]
    fn json_yaml_and_what_is_both() {
        let one = json!({"a": [1, -2, 1.5, true, null, "x"]});
        let text = one.to_string();
        assert_eq!(documents(&text), Ok(vec![one.clone()]));
        assert_eq!(documents(&format!("{text}\n{text}{text}")), Ok(vec![one.clone(); 3]));
        assert_eq!(documents(&format!("{text}\n---\n{text}\n")), Ok(vec![one.clone(); 2]));
        assert_eq!(documents("{a: [1, -2, 1.5, true, null, x]}"), Ok(vec![one.clone()]));
        assert_eq!(documents(&format!("\u{feff}{text}")), Ok(vec![one]));
        let large = documents("a: 99999999999999999999999\n").expect("a large number");
        assert_eq!(large, [json!({"a": 1e23})]);
        assert!(documents("{").is_err());
    }

    #[test]
    fn anchors_and_merges_are_read_and_cannot_explode() {
        let merged = documents("x: &m {mode: STRICT}\ny: {<<: *m}\n").expect("YAML");
        assert_eq!(merged, [json!({"x": {"mode": "STRICT"}, "y": {"mode": "STRICT"}})]);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            let _ = writeln!(bomb, "a{level}: &a{level} [{below}]");
        }
        assert!(documents(&bomb).is_err());
    }
}
