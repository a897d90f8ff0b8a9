//! Where documents begin.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::options;

/// The line, from 1, on which each document begins, as the documents of a manifest are counted: the items of a list count
/// on with it. Empty for a text that cannot be read.
#[must_use]
pub fn lines(text: &str) -> Vec<usize> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents: Vec<Spanned<Place>> =
        serde_saphyr::from_multiple_with_options(text, options(text)).unwrap_or_default();
    let mut lines = Vec::new();
    for document in &documents {
        lines.push(line(document));
        document.value.items(&mut lines);
    }
    lines
}

fn line(place: &Spanned<Place>) -> usize {
    usize::try_from(place.referenced.line()).unwrap_or(1).max(1)
}

/// What is needed of a document to find its items.
#[derive(Default)]
struct Place {
    kind: String,
    items: Vec<Spanned<Self>>,
}

impl Place {
    fn items(&self, lines: &mut Vec<usize>) {
        if !self.kind.ends_with("List") {
            return;
        }
        for (index, item) in self.items.iter().enumerate() {
            // The first item has the number of its list.
            if index == 0 {
                lines.pop();
            }
            lines.push(line(item));
            item.value.items(lines);
        }
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Places)
    }
}

struct Places;

impl<'de> Visitor<'de> for Places {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_i128<E>(self, _: i128) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_u128<E>(self, _: u128) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_str<E>(self, text: &str) -> Result<Place, E> {
        Ok(Place { kind: text.to_owned(), ..Place::default() })
    }

    fn visit_none<E>(self) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_unit<E>(self) -> Result<Place, E> {
        Ok(Place::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Place, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Place, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Place { items, ..Place::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Place, A::Error> {
        let mut place = Place::default();
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "kind" => place.kind = entries.next_value::<Place>()?.kind,
                "items" => place.items = entries.next_value::<Place>()?.items,
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_items_have_lines() {
        assert_eq!(lines("# head\n---\n# more\na: 1\n---\n\nb: 2\nc: 3\n"), [4, 7]);
        assert_eq!(lines("a: 1\n--- # next\nb: 2\n"), [1, 3]);
        let list = "a: 1\n---\nkind: List\nitems:\n- x: 1\n  y: 2\n-\n  kind: PodList\n  items:\n  - z: 1\n  - z: 2\n---\nb: 2\n";
        assert_eq!(lines(list), [1, 5, 10, 11, 13]);
        let json = "{\n  \"items\": [\n    {\"a\": 1},\n    {\"a\": 2}\n  ],\n  \"kind\": \"List\"\n}\n";
        assert_eq!(lines(json), [3, 4]);
        assert_eq!(lines("kind: List\nitems: []\n---\na: 1\n"), [1, 4]);
        for text in ["kind: [", ""] {
            assert!(lines(text).is_empty(), "{text}");
        }
    }
}
