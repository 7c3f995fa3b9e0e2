//! Bodies of map and stream messages as JSON, and properties as header texts.

use std::fmt::Write;

use kahawai_message::Text;
use kahawai_message::properties::PropertyValue;

/// A map message's body: `{"name":"Tom","age":5}`.
pub(crate) fn object(entries: &[(Text, PropertyValue)]) -> String {
    let mut out = String::new();
    put_object(&mut out, entries);
    out
}

/// A stream message's body: `[1,"two"]`.
pub(crate) fn array(values: &[PropertyValue]) -> String {
    let mut out = String::new();
    put_array(&mut out, values);
    out
}

fn put_object(out: &mut String, entries: &[(Text, PropertyValue)]) {
    out.push('{');
    for (index, (name, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        put_string(out, name);
        out.push(':');
        put_value(out, value);
    }
    out.push('}');
}

fn put_array(out: &mut String, values: &[PropertyValue]) {
    out.push('[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        put_value(out, value);
    }
    out.push(']');
}

fn put_value(out: &mut String, value: &PropertyValue) {
    match value {
        PropertyValue::Null => out.push_str("null"),
        PropertyValue::Map(entries) => put_object(out, entries),
        PropertyValue::List(values) => put_array(out, values),
        PropertyValue::Bytes(bytes) => {
            out.push('[');
            for (index, byte) in bytes.iter().enumerate() {
                // Writing to a string cannot fail.
                let _ = write!(out, "{}{byte}", if index > 0 { "," } else { "" });
            }
            out.push(']');
        }
        PropertyValue::String(text) => put_string(out, text),
        PropertyValue::Char(_) => put_string(out, &header_text(value)),
        PropertyValue::Double(number) if !number.is_finite() => put_string(out, &header_text(value)),
        PropertyValue::Float(number) if !number.is_finite() => put_string(out, &header_text(value)),
        plain => out.push_str(&header_text(plain)),
    }
}

fn put_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// What Java's string concatenation makes of the value: the text of its MESSAGE header.
pub(crate) fn header_text(value: &PropertyValue) -> String {
    match value {
        PropertyValue::Null => "null".to_owned(),
        PropertyValue::Bool(value) => value.to_string(),
        PropertyValue::Byte(value) => value.to_string(),
        PropertyValue::Char(unit) => String::from_utf16_lossy(&[*unit]),
        PropertyValue::Short(value) => value.to_string(),
        PropertyValue::Int(value) => value.to_string(),
        PropertyValue::Long(value) => value.to_string(),
        PropertyValue::Double(value) => {
            java_number(value.abs() < 1e-3 || value.abs() >= 1e7, *value, *value == 0.0)
        }
        PropertyValue::Float(value) => {
            java_number(value.abs() < 1e-3 || value.abs() >= 1e7, *value, *value == 0.0)
        }
        PropertyValue::String(text) => String::from(&**text),
        PropertyValue::Bytes(_) | PropertyValue::Map(_) | PropertyValue::List(_) => {
            let mut out = String::new();
            put_value(&mut out, value);
            out
        }
    }
}

/// Java writes `1.0E7` where Rust writes `1e7`, and `Infinity` where it writes `inf`.
fn java_number(scientific: bool, value: impl std::fmt::Debug + std::fmt::UpperExp, zero: bool) -> String {
    let plain = format!("{value:?}");
    match plain.as_str() {
        "inf" => return "Infinity".to_owned(),
        "-inf" => return "-Infinity".to_owned(),
        "NaN" => return plain,
        _ if zero || !scientific => return plain,
        _ => {}
    }
    let text = format!("{value:E}");
    match text.split_once('E') {
        Some((mantissa, exponent)) if !mantissa.contains('.') => format!("{mantissa}.0E{exponent}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn maps_and_streams_become_json() {
        let entries = [
            ("a\"b\n".into(), PropertyValue::String("x\\\u{1}".into())),
            ("n".into(), PropertyValue::Null),
            ("l".into(), PropertyValue::List(vec![PropertyValue::Int(-1), PropertyValue::Bool(true)])),
            ("b".into(), PropertyValue::Bytes(Bytes::from_static(&[0, 255]))),
            ("d".into(), PropertyValue::Double(f64::NAN)),
            ("c".into(), PropertyValue::Char(0x41)),
            ("m".into(), PropertyValue::Map(vec![("x".into(), PropertyValue::Float(1.5))])),
        ];
        let expected =
            r#"{"a\"b\n":"x\\\u0001","n":null,"l":[-1,true],"b":[0,255],"d":"NaN","c":"A","m":{"x":1.5}}"#;
        assert_eq!(object(&entries), expected);
        assert_eq!(array(&[PropertyValue::Long(1), PropertyValue::String("two".into())]), r#"[1,"two"]"#);
    }

    #[test]
    fn numbers_look_as_in_java() {
        let double = |value| header_text(&PropertyValue::Double(value));
        for (value, expected) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (1e7, "1.0E7"),
            (1.25e-5, "1.25E-5"),
            (9_999_999.0, "9999999.0"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(double(value), expected);
        }
        assert_eq!(header_text(&PropertyValue::Float(3e10)), "3.0E10");
    }
}
