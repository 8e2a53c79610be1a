//! A JSON object in which no name stands twice: of two members with one name, two readers may believe two different ones (RFC 7515 section 4,
//! RFC 7519 section 4).

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, MapAccess, Visitor},
};
use serde_json::Value;

/// The members by name.
pub(super) struct Members(HashMap<String, Value>);

impl Members {
    /// Reads a whole text.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The member `name`; none if it is left out or null.
    ///
    /// # Errors
    /// It is no `T`.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> serde_json::Result<Option<T>> {
        self.0.remove(name).map_or(Ok(None), serde_json::from_value)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = HashMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(de::Error::custom("a name stands twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_stands_twice_is_refused_however_it_is_spelled() {
        assert!(Members::parse(br#"{"a":1,"b":2}"#).is_some());
        for twice in [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":2,"\u0061":3}"#, r#"{"a":null,"a":1}"#] {
            assert!(Members::parse(twice.as_bytes()).is_none(), "{twice}");
        }
        for other in ["[]", "1", r#"{"a":1} x"#, r#"{"a":1"#, "", "\u{feff}{}"] {
            assert!(Members::parse(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn a_text_that_nests_without_end_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(4_000), "]".repeat(4_000));
        assert!(Members::parse(deep.as_bytes()).is_none());
    }
}
