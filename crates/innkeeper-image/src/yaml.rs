//! Emits YAML that no string can break: JSON, which is YAML, with every character escaped that YAML does not allow.
//!
//! cloud-init reads with PyYAML, which refuses DEL, the C1 controls, U+FEFF and the like as raw text, and which does not join the
//! two escapes of a surrogate pair. So characters of the basic plane that are not printable are escaped, and those above it stand raw.

use serde_json::Value;

/// Emits a document that ends with a newline.
pub(crate) fn emit(value: &Value) -> String {
    let json = format!("{value:#}");
    let mut text = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        // serde_json escaped the C0 controls inside of strings; what is below 0x20 here is its own line breaks.
        let plain = matches!(character, '\n' | ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
            || character > '\u{ffff}';
        if plain {
            text.push(character);
        } else {
            // Only strings hold such characters, so that an escape is right wherever one stands.
            text.push_str(&format!("\\u{:04x}", u32::from(character)));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unprintable_characters_are_escaped() {
        assert_eq!(
            emit(&Value::from("a\u{7f}\u{85}\u{feff}\u{2028}é😀\n")),
            "\"a\\u007f\\u0085\\ufeff\\u2028é😀\\n\"\n"
        );
    }

    proptest! {
        #[test]
        fn any_string_survives_a_yaml_parser(key in any::<String>(), value in any::<String>()) {
            let document = serde_json::json!({"outer": [{key: value}]});
            let parsed: Value = serde_saphyr::from_str(&emit(&document)).unwrap();
            prop_assert_eq!(parsed, document);
        }
    }
}
