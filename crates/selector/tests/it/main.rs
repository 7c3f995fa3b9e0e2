//! Selectors made at random, against an evaluator that follows the definitions word for word, and texts that
//! are none.

mod reference;

use kahawai_selector::{Fields, Selector, TEXT_BYTES_MAX, Value};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use reference::{Message, any_message, any_test};

/// Fields that hold a value of every type, by the first letter of the name.
struct EveryType;

impl Fields for EveryType {
    fn field(&self, name: &str) -> Value<'_> {
        match name.as_bytes().first() {
            Some(b'a') => true.into(),
            Some(b'b') => i8::MIN.into(),
            Some(b'c') => i16::MIN.into(),
            Some(b'd') => i32::MIN.into(),
            Some(b'e') => i64::MIN.into(),
            Some(b'f') => f32::NAN.into(),
            Some(b'g') => f64::NEG_INFINITY.into(),
            Some(b'h') => "text %_é".into(),
            _ => Value::Null,
        }
    }
}

/// Whatever it is, it is parsed or refused, and what is parsed is evaluated.
fn check_harmless(text: &str) {
    match Selector::parse(text) {
        Ok(selector) => {
            assert_eq!(selector.matches(&EveryType), selector.evaluate(&EveryType) == Some(true));
            assert_eq!(selector.text(), text);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn any_part() -> impl Strategy<Value = &'static str> {
    select(vec![
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "h",
        "x",
        "'",
        "'a'",
        "'%'",
        "''",
        "\"",
        "0",
        "1",
        "07",
        "08",
        "0x1F",
        "1.5",
        ".5",
        "5.",
        "1e5",
        "1e",
        "9223372036854775808",
        "5L",
        "5f",
        " AND ",
        " OR ",
        " NOT ",
        " IS NULL",
        " IS ",
        "NULL",
        " BETWEEN ",
        " IN ",
        " LIKE ",
        " ESCAPE ",
        "TRUE",
        "FALSE",
        "XPATH ",
        "(",
        ")",
        "(",
        ")",
        ",",
        "=",
        "<>",
        "<",
        ">",
        "<=",
        ">=",
        "!=",
        "+",
        "-",
        "*",
        "/",
        "%",
        "--",
        "/*",
        "*/",
        "\n",
        "\t",
        " ",
        "é",
        "\u{1f600}",
        "\0",
        "convert_string_expressions:",
        "hyphenated_props:",
    ])
}

proptest! {
    /// Operators, precedence and three-valued logic are those of the reference, and no more parentheses are
    /// needed.
    #[test]
    fn evaluation_agrees_with_the_reference(test in any_test(), message in any_message()) {
        let text = test.text();
        let selector = Selector::parse(&text);
        prop_assert!(selector.is_ok(), "{}: {:?}", text, selector);
        prop_assert_eq!(selector?.evaluate(&message), test.evaluate(&message), "{}", text);
    }

    /// A condition and its negation are never both true, and both are unknown together.
    #[test]
    fn negation_is_consistent(test in any_test(), message in any_message()) {
        let positive = Selector::parse(&test.text())?.evaluate(&message);
        let negative = Selector::parse(&format!("NOT ({})", test.text()))?.evaluate(&message);
        prop_assert_eq!(negative, positive.map(|truth| !truth));
    }

    #[test]
    fn no_text_does_harm(text in any::<String>()) {
        check_harmless(&text);
    }

    #[test]
    fn no_mixture_of_parts_does_harm(parts in vec(any_part(), 0..24)) {
        check_harmless(&parts.concat());
    }

    #[test]
    fn no_repetition_of_parts_does_harm(parts in vec(any_part(), 1..4)) {
        let part = parts.concat();
        check_harmless(&part.repeat(TEXT_BYTES_MAX / part.len()));
    }
}

#[test]
fn an_empty_message_matches_what_asks_for_nothing() {
    let message = Message::default();
    for (text, expected) in [("a IS NULL", Some(true)), ("a = a", None), ("1 = 1", Some(true))] {
        assert_eq!(Selector::parse(text).map(|selector| selector.evaluate(&message)), Ok(expected), "{text}");
    }
}
