//! What a selector is evaluated as: conditions over operands.

use crate::pattern::Pattern;
use crate::value::{Fields, Number, Value};
use std::borrow::Cow;
use std::cmp::Ordering;

/// Longest string in bytes that `+` makes; where it would be longer, the result is `NULL`.
pub const CONCATENATION_BYTES_MAX: usize = 1 << 16;

/// What one evaluation sees.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'v> {
    pub(crate) fields: &'v dyn Fields,
    pub(crate) convert_strings: bool,
}

impl<'v> Scope<'v> {
    /// UNKNOWN if a value is `NULL`, FALSE if the types are unlike (JMS 1.1, 3.8.1.2).
    fn compare(self, left: &Value<'v>, comparison: Comparison, right: &'v Operand) -> Option<bool> {
        let right = right.value(self);
        if matches!(left, Value::Null) || matches!(right, Value::Null) {
            return None;
        }
        Some(left.order(&right, self.convert_strings).is_some_and(|order| comparison.holds(order)))
    }
}

/// What has a truth value.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    /// `TRUE`, `FALSE`, `NULL`.
    Constant(Option<bool>),
    /// A field that should hold a boolean.
    Field(Box<str>),
    Not(Box<Condition>),
    /// `AND` of two or more; a list, so that a long chain is not deep.
    All(Vec<Condition>),
    /// `OR` of two or more.
    Any(Vec<Condition>),
    Compare {
        left: Operand,
        comparison: Comparison,
        right: Operand,
    },
    Between {
        value: Operand,
        low: Operand,
        high: Operand,
    },
    /// Not the negation of `Between`: both are false for unlike types.
    NotBetween {
        value: Operand,
        low: Operand,
        high: Operand,
    },
    In {
        field: Box<str>,
        /// Sorted.
        list: Box<[Box<str>]>,
    },
    Like {
        value: Operand,
        pattern: Pattern,
    },
    IsNull(Operand),
}

/// What has a value.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Literal(Value<'static>),
    Field(Box<str>),
    Negate(Box<Operand>),
    Arithmetic { left: Box<Operand>, operator: Arithmetic, right: Box<Operand> },
    Condition(Box<Condition>),
}

/// An operator that orders two values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// An operator on two numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Comparison {
    /// How it is written.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "<>",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Arithmetic {
    fn apply<'v>(self, left: Value<'v>, right: &Value<'v>) -> Value<'v> {
        if self == Self::Add
            && let Value::String(text) = left
        {
            return concatenate(text, right);
        }
        let (Some(left), Some(right)) = (left.number(), right.number()) else {
            return Value::Null;
        };
        let (left, right) = match (self, left, right) {
            (Self::Add, Number::Int(left), Number::Int(right)) => {
                return Value::Int(left.wrapping_add(right));
            }
            (Self::Subtract, Number::Int(left), Number::Int(right)) => {
                return Value::Int(left.wrapping_sub(right));
            }
            (Self::Multiply, Number::Int(left), Number::Int(right)) => {
                return Value::Int(left.wrapping_mul(right));
            }
            _ => match (left.as_long(), right.as_long()) {
                (Some(left), Some(right)) if self == Self::Add => {
                    return Value::Long(left.wrapping_add(right));
                }
                (Some(left), Some(right)) if self == Self::Subtract => {
                    return Value::Long(left.wrapping_sub(right));
                }
                (Some(left), Some(right)) if self == Self::Multiply => {
                    return Value::Long(left.wrapping_mul(right));
                }
                _ => (left.as_double(), right.as_double()),
            },
        };
        Value::Double(match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
            Self::Remainder => left % right,
        })
    }
}

fn concatenate<'v>(left: Cow<'v, str>, right: &Value<'_>) -> Value<'v> {
    let right_bytes = match right {
        Value::Null => return Value::Null,
        Value::String(text) => text.len(),
        // Numbers and booleans are short; what they add is not worth counting ahead.
        _ => 0,
    };
    if left.len().saturating_add(right_bytes) > CONCATENATION_BYTES_MAX {
        return Value::Null;
    }
    // Owned already in a chain of `+`, so that the chain copies each part once.
    let mut text = left.into_owned();
    right.append_to(&mut text);
    Value::String(Cow::Owned(text))
}

impl Operand {
    fn value<'v>(&'v self, scope: Scope<'v>) -> Value<'v> {
        match self {
            Self::Literal(value) => value.by_ref(),
            Self::Field(name) => scope.fields.field(name),
            Self::Negate(operand) => negate(&operand.value(scope)),
            Self::Arithmetic { left, operator, right } => {
                operator.apply(left.value(scope), &right.value(scope))
            }
            Self::Condition(condition) => condition.evaluate(scope).into(),
        }
    }
}

/// Unary minus; `NULL` if it is not a number that it is applied to.
pub(crate) fn negate(value: &Value<'_>) -> Value<'static> {
    match value.number() {
        Some(Number::Int(value)) => Value::Int(value.wrapping_neg()),
        Some(Number::Long(value)) => Value::Long(value.wrapping_neg()),
        Some(Number::Float(value)) => Value::Float(-value),
        Some(Number::Double(value)) => Value::Double(-value),
        None => Value::Null,
    }
}

impl Condition {
    pub(crate) fn evaluate<'v>(&'v self, scope: Scope<'v>) -> Option<bool> {
        match self {
            Self::Constant(truth) => *truth,
            Self::Field(name) => match scope.fields.field(name) {
                Value::Null => None,
                value => Some(value == Value::Bool(true)),
            },
            Self::Not(condition) => condition.evaluate(scope).map(|truth| !truth),
            Self::All(conditions) => fold(conditions.iter().map(|c| c.evaluate(scope)), false),
            Self::Any(conditions) => fold(conditions.iter().map(|c| c.evaluate(scope)), true),
            Self::Compare { left, comparison, right } => {
                scope.compare(&left.value(scope), *comparison, right)
            }
            Self::Between { value, low, high } => {
                let value = value.value(scope);
                let bounds = [(Comparison::GreaterOrEqual, low), (Comparison::LessOrEqual, high)];
                fold(
                    bounds.into_iter().map(|(comparison, bound)| scope.compare(&value, comparison, bound)),
                    false,
                )
            }
            Self::NotBetween { value, low, high } => {
                let value = value.value(scope);
                let bounds = [(Comparison::Less, low), (Comparison::Greater, high)];
                fold(
                    bounds.into_iter().map(|(comparison, bound)| scope.compare(&value, comparison, bound)),
                    true,
                )
            }
            Self::In { field, list } => match scope.fields.field(field) {
                Value::String(text) => Some(list.binary_search_by(|item| (**item).cmp(&text)).is_ok()),
                _ => None,
            },
            Self::Like { value, pattern } => match value.value(scope) {
                Value::Null => None,
                Value::String(text) => Some(pattern.matches(&text)),
                _ => Some(false),
            },
            Self::IsNull(operand) => Some(matches!(operand.value(scope), Value::Null)),
        }
    }
}

/// `AND` with `decisive` false, `OR` with `decisive` true: one decisive truth decides, else one UNKNOWN does.
fn fold(truths: impl Iterator<Item = Option<bool>>, decisive: bool) -> Option<bool> {
    let mut result = Some(!decisive);
    for truth in truths {
        match truth {
            Some(truth) if truth == decisive => return Some(decisive),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Selector;

    const TRUE: Option<bool> = Some(true);
    const FALSE: Option<bool> = Some(false);
    const UNKNOWN: Option<bool> = None;

    /// `t`, `f`, `byte`, … hold what their names say, everything else nothing.
    struct Sample;

    impl Fields for Sample {
        fn field(&self, name: &str) -> Value<'_> {
            match name {
                "t" => true.into(),
                "f" => false.into(),
                "byte" => 123i8.into(),
                "short" => 123i16.into(),
                "int" | "rank" => 123.into(),
                "long" => 123i64.into(),
                "float" => 123f32.into(),
                "double" => 123f64.into(),
                "two" => 2.into(),
                "zero" => 0.into(),
                "int_max" => i32::MAX.into(),
                "long_max" => i64::MAX.into(),
                "name" => "James".into(),
                "city" => "London".into(),
                "number" => "123".into(),
                "decimal" => "1.5".into(),
                "quote" => "'In God We Trust'".into(),
                "$_x1" | "größe" | "x-size" => 1.into(),
                _ => Value::Null,
            }
        }
    }

    fn check(expected: Option<bool>, selectors: &[&str]) {
        for text in selectors {
            match Selector::parse(text) {
                Ok(selector) => {
                    assert_eq!(selector.evaluate(&Sample), expected, "{text}");
                    assert_eq!(selector.matches(&Sample), expected == TRUE, "{text}");
                }
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }

    #[test]
    fn not_of_unknown_is_unknown() {
        check(FALSE, &["NOT t", "not(t)", "NOT NOT f", "NOT TRUE"]);
        check(TRUE, &["NOT f", "Not False", "NOT NOT t"]);
        check(UNKNOWN, &["NOT u", "NOT NOT u", "NOT NULL", "NULL"]);
    }

    #[test]
    fn and_is_false_if_one_is_false_else_unknown_if_one_is_unknown() {
        check(TRUE, &["t AND t", "t and t And TRUE"]);
        check(FALSE, &["t AND f", "f AND t", "f AND f", "f AND u", "u AND f", "u AND u AND f"]);
        check(UNKNOWN, &["t AND u", "u AND t", "u AND u", "t AND NULL"]);
    }

    #[test]
    fn or_is_true_if_one_is_true_else_unknown_if_one_is_unknown() {
        check(TRUE, &["t OR t", "t OR f", "f OR t", "t OR u", "u OR t", "u OR u OR t"]);
        check(FALSE, &["f OR f", "f OR f OR FALSE"]);
        check(UNKNOWN, &["f OR u", "u OR f", "u OR u", "f OR NULL"]);
    }

    #[test]
    fn a_field_that_holds_no_boolean_is_a_false_condition() {
        check(FALSE, &["name", "rank", "name OR rank"]);
        check(TRUE, &["NOT name", "NOT rank"]);
    }

    #[test]
    fn comparing_null_is_unknown() {
        check(
            UNKNOWN,
            &[
                "u = 0", "u <> 0", "u > 0", "u >= 0", "u < 0", "u <= 0", "0 < u", "'a' = u", "'a' <> u",
                "u = v",
            ],
        );
        check(UNKNOWN, &["u LIKE 'a'", "u NOT LIKE 'a'", "u IN ('a')", "u NOT IN ('a')"]);
        check(UNKNOWN, &["u BETWEEN 1 AND 2", "u NOT BETWEEN 1 AND 2", "rank BETWEEN u AND 200"]);
        check(
            UNKNOWN,
            &["-u = 0", "+u = 0", "u * 2 = 0", "2 / u = 0", "u + 2 = 0", "2 - u = 0", "name + u = 'James'"],
        );
    }

    #[test]
    fn comparing_unlike_types_is_false_for_every_operator() {
        check(
            FALSE,
            &["name = 5", "name <> 5", "5 = name", "name > 5", "name <= 5", "t = 1", "t <> 'true'", "t > 0"],
        );
        check(FALSE, &["name BETWEEN 1 AND 2", "name NOT BETWEEN 1 AND 2", "number = 123", "1 = TRUE"]);
    }

    #[test]
    fn is_null_knows_everything() {
        check(
            TRUE,
            &[
                "u IS NULL",
                "name IS NOT NULL",
                "u + 1 IS NULL",
                "NULL IS NULL",
                "(u = 1) IS NULL",
                "u = 1 IS NULL",
            ],
        );
        check(FALSE, &["u is not null", "name is null", "f IS NULL", "NOT u IS NULL"]);
    }

    #[test]
    fn numbers_of_all_types_are_compared() {
        for field in ["byte", "short", "int", "long", "float", "double"] {
            for literal in ["123", "123L", "123.0", "0x7b", "0173", "1.23E2", "byte", "long", "float"] {
                check(TRUE, &[&format!("{field} = {literal}"), &format!("{literal} >= {field}")]);
                check(FALSE, &[&format!("{field} <> {literal}"), &format!("{literal} < {field}")]);
            }
            check(
                TRUE,
                &[&format!("{field} > 122.5"), &format!("-{field} = -123"), &format!("123 - {field} = 0")],
            );
            check(FALSE, &[&format!("{field} = 10"), &format!("10 > {field}")]);
        }
    }

    #[test]
    fn literals_are_read_as_java_does() {
        check(
            TRUE,
            &[
                "1. < 1.1",
                ".1 < .5",
                "-.5E1 < .1E1",
                "5E8 < 5E10",
                "4E-10 < 5E-10",
                "+6.2 = 6.2",
                "-95.7 < 7.",
            ],
        );
        check(
            TRUE,
            &[
                "1.E1 = 10",
                "1e1=10",
                "08.5 = 8.5",
                "09E1 = 90",
                "010 = 8",
                "0 = 00",
                "0xfF = 255",
                "0xFFFFFFFF > 0",
            ],
        );
        check(TRUE, &["0L = 0", "0x10L = 16", "010l = 8", "1.5f = 1.5", "1d = 1", "08d = 8", "1.1f <> 1.1"]);
        check(TRUE, &["long_max = 9223372036854775807", "-9223372036854775808 < -long_max", "1E999 > 1E308"]);
        check(TRUE, &["two=2and rank=123or f", "rank between 100and 200"]);
    }

    #[test]
    fn strings_and_booleans_are_compared() {
        check(
            TRUE,
            &[
                "name = 'James'",
                "'James' = name",
                "name <> 'james'",
                "t = TRUE",
                "t <> f",
                "f = (1 > 2)",
                "t = t = t",
            ],
        );
        check(
            TRUE,
            &[
                "quote = '''In God We Trust'''",
                "'' = ''",
                "name < city",
                "f < t",
                "name >= name",
                "t = NOT f",
            ],
        );
        check(FALSE, &["name = 'Bob'", "t = false", "name > city"]);
    }

    #[test]
    fn arithmetic_promotes_as_activemq_does() {
        check(
            TRUE,
            &["rank + 2 = 125", "rank - two = 121", "rank * 2 = 246", "rank / two = 61.5", "two / 2 = 1"],
        );
        check(
            TRUE,
            &["rank % two = 1", "-rank % 2 = -1", "5.5 % 2 = 1.5", "byte + byte = 246", "float * 2 = 246.0"],
        );
        check(
            TRUE,
            &["int_max + 1 < 0", "int_max + 1L > 0 OR TRUE", "int_max + long > int_max", "long_max + 1 < 0"],
        );
        check(TRUE, &["-byte = -123", "- -rank = rank", "+-+rank = -123", "int_max * double > int_max"]);
    }

    #[test]
    fn division_by_zero_is_that_of_doubles() {
        check(
            TRUE,
            &["rank / 0 > 1E308", "-rank / zero < -1E308", "zero / 0 = zero / 0", "rank % 0 > 1 / 0"],
        );
        check(FALSE, &["rank / 0 = 0", "rank % zero = 0", "rank / 0 < 5"]);
    }

    #[test]
    fn arithmetic_without_meaning_is_null() {
        check(
            UNKNOWN,
            &["name - 1 = 0", "1 + name = 1", "-name = 0", "t * 2 = 2", "f + 1 = 1", "1 / 'a' = 1"],
        );
        check(TRUE, &["name - 1 = 0 OR t", "-name IS NULL"]);
    }

    #[test]
    fn plus_after_a_string_concatenates() {
        check(
            TRUE,
            &["name + '!' = 'James!'", "name + 1 + 2 = 'James12'", "name + 1.0 + t = 'James1.0true'"],
        );
        check(TRUE, &["'<' + name + '>' LIKE '<J%>'"]);
    }

    #[test]
    fn a_concatenation_stops_at_its_limit() {
        struct Large(String);
        impl Fields for Large {
            fn field(&self, _: &str) -> Value<'_> {
                self.0.as_str().into()
            }
        }
        let fields = Large("x".repeat(CONCATENATION_BYTES_MAX / 2));
        let evaluate = |text: &str| Selector::parse(text).map(|selector| selector.evaluate(&fields));
        assert_eq!(evaluate("a + a LIKE 'x%'"), Ok(TRUE));
        assert_eq!(evaluate("a + a + 'x' LIKE 'x%'"), Ok(UNKNOWN));
    }

    #[test]
    fn between_includes_its_bounds() {
        check(
            TRUE,
            &[
                "rank BETWEEN 123 AND 123",
                "rank between 100 and 150 and t",
                "rank + 1 BETWEEN 120 + 4 AND 200",
            ],
        );
        check(
            FALSE,
            &["rank BETWEEN 124 AND 200", "rank BETWEEN 200 AND 100", "rank NOT BETWEEN 123 AND 124"],
        );
        check(
            TRUE,
            &["rank NOT BETWEEN 1 AND 122", "1 BETWEEN u AND 0 IS NOT NULL", "rank NOT BETWEEN 200 AND u"],
        );
        check(FALSE, &["rank BETWEEN 200 AND u"]);
    }

    #[test]
    fn in_looks_for_a_string() {
        check(
            TRUE,
            &[
                "name IN ('Bob', 'James', 'Alice')",
                "name in('James')",
                "name NOT IN ('Bob')",
                "(name) IN ('James')",
            ],
        );
        check(FALSE, &["name IN ('Bob', 'james')", "name NOT IN ('James', 'James')"]);
        check(UNKNOWN, &["rank IN ('123')", "rank NOT IN ('123')", "t IN ('true')"]);
    }

    #[test]
    fn like_matches_strings_only() {
        check(
            TRUE,
            &[
                "name LIKE 'J%'",
                "name LIKE '_ames'",
                "name NOT LIKE 'j%'",
                "quote LIKE '''In G_d%'",
                "'a_b' LIKE 'a!__' ESCAPE '!'",
            ],
        );
        check(
            FALSE,
            &[
                "name LIKE 'J'",
                "rank LIKE '%'",
                "t LIKE '%'",
                "name NOT LIKE '%'",
                "name LIKE 'J!%' ESCAPE '!'",
            ],
        );
        check(TRUE, &["rank NOT LIKE '%'", "'it''s' LIKE '%''%'", "'%' LIKE '''%' ESCAPE '''' "]);
    }

    #[test]
    fn operators_bind_as_in_sql() {
        check(
            TRUE,
            &[
                "t OR t AND f",
                "1 + 2 * 3 = 7",
                "(1 + 2) * 3 = 9",
                "10 - 4 - 3 = 3",
                "8 / 4 / 2 = 1",
                "2 * 7 % 4 = 2",
            ],
        );
        check(
            TRUE,
            &[
                "NOT f AND t",
                "NOT rank = 5",
                "NOT name LIKE 'B%'",
                "NOT rank > 200 AND NOT rank IN ('a') IS NOT NULL",
            ],
        );
        check(
            TRUE,
            &["NOT rank BETWEEN 1 AND 2 AND t", "1 < 2 = t", "t = 1 < 2", "-2 + 3 = 1", "f = NOT t AND t"],
        );
        check(FALSE, &["(t OR t) AND f", "NOT (f OR t)", "NOT f AND f", "NOT t OR f"]);
    }

    #[test]
    fn comments_are_blanks() {
        check(
            TRUE,
            &["t /* or not */ AND/**/t", "/***/t/* ** / */", "t -- rest\n AND -- more\r\nt", "t--\r"],
        );
        check(TRUE, &["5--3 = 8", "0 = 1 - --1", "5 /2--1 = 3.5"]);
        check(FALSE, &["5--3\n=8"]);
        check(UNKNOWN, &["t = 1 -- comment"]);
    }

    #[test]
    fn names_are_letters_digits_and_two_signs() {
        check(
            TRUE,
            &[
                "$_x1 = 1",
                "größe = 1",
                "x-size IS NULL",
                "JMSXGroupID IS NULL",
                "nottrue IS NULL",
                "Name IS NULL",
            ],
        );
        check(
            TRUE,
            &[
                "hyphenated_props:x-size = 1",
                "hyphenated_props:rank - 1 = 122",
                "hyphenated_props:rank -1 = 122",
            ],
        );
    }

    #[test]
    fn the_conversion_prefix_compares_strings_with_numbers_and_booleans() {
        check(TRUE, &["convert_string_expressions:number = 123", "convert_string_expressions:123 <= number"]);
        check(
            TRUE,
            &[
                "convert_string_expressions:number BETWEEN 100 AND 200",
                "convert_string_expressions:'true' = t",
            ],
        );
        check(
            TRUE,
            &["convert_string_expressions:decimal = 1.5", "convert_string_expressions:name = 'James'"],
        );
        check(FALSE, &["convert_string_expressions:decimal > 1", "convert_string_expressions:name <> 1"]);
        check(FALSE, &["convert_string_expressions: name", "convert_string_expressions:number = 124"]);
        check(TRUE, &["hyphenated_props:convert_string_expressions:number = 123 AND x-size = 1"]);
        check(TRUE, &["convert_string_expressions:hyphenated_props:number = 123 AND x-size = 1"]);
        // Only comparisons convert.
        check(
            UNKNOWN,
            &["convert_string_expressions:1 + number = 124", "convert_string_expressions:rank IN ('123')"],
        );
    }
}
