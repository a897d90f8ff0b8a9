//! Fields of a document, read with exact messages.

use serde_json::Value;

use crate::object::{Map, ObjectName, TargetPort};
use crate::policy::validate::type_name;

pub(super) struct Wrong {
    pub(super) field: String,
    pub(super) message: String,
}

pub(super) type Reading<T> = Result<T, Wrong>;

/// A value with its path, for reading with exact messages.
pub(super) struct Fields<'a> {
    pub(super) value: &'a Value,
    pub(super) path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn wrong<T>(&self, expected: &str) -> Reading<T> {
        Err(Wrong {
            field: self.path.clone(),
            message: format!("must be {expected}, not {}: correct it", type_name(self.value)),
        })
    }

    pub(super) fn get(&self, key: &str) -> Reading<Fields<'a>> {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        match self.value {
            Value::Object(fields) => Ok(Fields { value: fields.get(key).unwrap_or(&Value::Null), path }),
            Value::Null => Ok(Fields { value: &Value::Null, path }),
            _ => self.wrong("a mapping"),
        }
    }

    pub(super) fn text(&self, key: &str) -> Reading<Option<&'a str>> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text).filter(|text| !text.is_empty()).map(String::as_str)),
            _ => field.wrong("a string (in quotes)"),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Reading<bool> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            _ => field.wrong("true or false"),
        }
    }

    pub(super) fn port(&self, key: &str) -> Reading<Option<u16>> {
        let field = self.get(key)?;
        if field.value.is_null() {
            return Ok(None);
        }
        match field.value.as_u64().and_then(|port| u16::try_from(port).ok()) {
            Some(port) if port > 0 => Ok(Some(port)),
            _ => field.wrong("a port number from 1 to 65535"),
        }
    }

    pub(super) fn list(&self, key: &str) -> Reading<Vec<Fields<'a>>> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(Vec::new()),
            Value::Array(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, value)| Fields { value, path: format!("{}[{index}]", field.path) })
                .collect()),
            _ => field.wrong("a list"),
        }
    }

    pub(super) fn strings(&self, key: &str) -> Reading<Map> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(Map::new()),
            Value::Object(pairs) => pairs
                .keys()
                .map(|key| Ok((key.clone(), field.text(key)?.unwrap_or_default().to_owned())))
                .collect(),
            _ => field.wrong("a mapping"),
        }
    }

    pub(super) fn name(&self) -> Reading<ObjectName> {
        let metadata = self.get("metadata")?;
        let Some(name) = metadata.text("name")? else {
            return Err(Wrong {
                field: "metadata.name".to_owned(),
                message: "the object has no name: add one".to_owned(),
            });
        };
        Ok(ObjectName::new(metadata.text("namespace")?.unwrap_or("default"), name))
    }
}

/// A port given as a number or as the name of a port.
pub(super) fn target(field: &Fields) -> Reading<Option<TargetPort>> {
    match field.value {
        Value::Null => Ok(None),
        Value::String(text) => {
            Ok(Some(text.parse().map_or_else(|_| TargetPort::Name(text.clone()), TargetPort::Number)))
        }
        Value::Number(number) => match number.as_u64().and_then(|port| u16::try_from(port).ok()) {
            // A targetPort of 0 is the same as none.
            Some(0) => Ok(None),
            Some(port) => Ok(Some(TargetPort::Number(port))),
            None => field.wrong("a port number or the name of a port"),
        },
        _ => field.wrong("a port number or the name of a port"),
    }
}
