//! Turns text into a condition, by operator precedence.

use std::collections::BTreeSet;

use crate::SelectorError;
use crate::expression::{Arithmetic, Comparison, Condition, Operand, negate};
use crate::pattern::{PATTERN_BYTES_MAX, Pattern};
use crate::token::{Keyword, Symbol, Token, Tokens};
use crate::value::Value;

/// Longest selector in bytes, prefixes included: what OpenWire can carry in a string.
pub const TEXT_BYTES_MAX: usize = 65_535;

/// How deep expressions may nest: parentheses and operators in each other. `AND` and `OR` of any number of
/// conditions are one level, a chain of any other operator is as deep as it is long.
pub const DEPTH_MAX: usize = 128;

const CONVERT_PREFIX: &str = "convert_string_expressions:";
const HYPHENS_PREFIX: &str = "hyphenated_props:";

/// What is to know about a selector.
pub(crate) struct Parsed {
    pub(crate) condition: Condition,
    pub(crate) convert_strings: bool,
    /// Sorted, each once.
    pub(crate) identifiers: Box<[Box<str>]>,
}

/// Parses a whole selector.
pub(crate) fn parse(text: &str) -> Result<Parsed, SelectorError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(SelectorError::TooLong { bytes: text.len(), limit: TEXT_BYTES_MAX });
    }
    let (mut start, mut convert_strings, mut hyphens) = (0, false, false);
    loop {
        if text[start..].starts_with(CONVERT_PREFIX) {
            convert_strings = true;
            start += CONVERT_PREFIX.len();
        } else if text[start..].starts_with(HYPHENS_PREFIX) {
            hyphens = true;
            start += HYPHENS_PREFIX.len();
        } else {
            break;
        }
    }
    let mut tokens = Tokens::new(text, start, hyphens);
    let (at, token) = tokens.next()?;
    if token == Token::End {
        return Err(SelectorError::Empty);
    }
    let mut parser = Parser { tokens, at, token, depth: 0, identifiers: BTreeSet::new() };
    let condition = parser.expression(Level::Or)?.into_condition()?;
    if parser.token != Token::End {
        return Err(parser.unexpected("an operator or the end"));
    }
    let identifiers = parser.identifiers.into_iter().map(Box::from).collect();
    Ok(Parsed { condition, convert_strings, identifiers })
}

/// How tightly operators bind, loosest first. `NOT` before a condition stands between `And` and `Equality`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Or,
    And,
    /// `=`, `<>`, `IS`.
    Equality,
    /// `<`, `LIKE`, `BETWEEN`, `IN` and their like.
    Comparison,
    Sum,
    Product,
    Prefix,
}

/// An operator that stands after its left operand.
#[derive(Clone, Copy)]
enum Infix {
    Or,
    And,
    Is,
    /// Of `NOT LIKE`, `NOT BETWEEN`, `NOT IN`.
    Not,
    Like,
    Between,
    In,
    Compare(Comparison),
    Arithmetic(Arithmetic),
}

impl Infix {
    fn of(token: &Token<'_>) -> Option<Self> {
        Some(match token {
            Token::Keyword(Keyword::Or) => Self::Or,
            Token::Keyword(Keyword::And) => Self::And,
            Token::Keyword(Keyword::Is) => Self::Is,
            Token::Keyword(Keyword::Not) => Self::Not,
            Token::Keyword(Keyword::Like) => Self::Like,
            Token::Keyword(Keyword::Between) => Self::Between,
            Token::Keyword(Keyword::In) => Self::In,
            Token::Symbol(Symbol::Equal) => Self::Compare(Comparison::Equal),
            Token::Symbol(Symbol::NotEqual) => Self::Compare(Comparison::NotEqual),
            Token::Symbol(Symbol::Less) => Self::Compare(Comparison::Less),
            Token::Symbol(Symbol::LessOrEqual) => Self::Compare(Comparison::LessOrEqual),
            Token::Symbol(Symbol::Greater) => Self::Compare(Comparison::Greater),
            Token::Symbol(Symbol::GreaterOrEqual) => Self::Compare(Comparison::GreaterOrEqual),
            Token::Symbol(Symbol::Plus) => Self::Arithmetic(Arithmetic::Add),
            Token::Symbol(Symbol::Minus) => Self::Arithmetic(Arithmetic::Subtract),
            Token::Symbol(Symbol::Star) => Self::Arithmetic(Arithmetic::Multiply),
            Token::Symbol(Symbol::Slash) => Self::Arithmetic(Arithmetic::Divide),
            Token::Symbol(Symbol::Percent) => Self::Arithmetic(Arithmetic::Remainder),
            _ => return None,
        })
    }

    fn level(self) -> Level {
        match self {
            Self::Or => Level::Or,
            Self::And => Level::And,
            Self::Is | Self::Compare(Comparison::Equal | Comparison::NotEqual) => Level::Equality,
            Self::Not | Self::Like | Self::Between | Self::In | Self::Compare(_) => Level::Comparison,
            Self::Arithmetic(Arithmetic::Add | Arithmetic::Subtract) => Level::Sum,
            Self::Arithmetic(_) => Level::Product,
        }
    }
}

/// An expression that has been read.
struct Expression {
    operand: Operand,
    /// Where it starts.
    at: usize,
    /// How many levels it has, at least 1. Bounds the recursion of evaluating, cloning and dropping it.
    depth: usize,
}

impl Expression {
    fn leaf(operand: Operand, at: usize) -> Self {
        Self { operand, at, depth: 1 }
    }

    /// What was made of expressions, the deepest of which has `depth` levels.
    fn above(operand: Operand, at: usize, depth: usize) -> Result<Self, SelectorError> {
        if depth == DEPTH_MAX {
            return Err(SelectorError::TooDeep { at, limit: DEPTH_MAX });
        }
        Ok(Self { operand, at, depth: depth + 1 })
    }

    fn condition(condition: Condition, at: usize, depth: usize) -> Result<Self, SelectorError> {
        Self::above(Operand::Condition(Box::new(condition)), at, depth)
    }

    fn condition_or_not(
        not: bool,
        positive: Condition,
        at: usize,
        depth: usize,
    ) -> Result<Self, SelectorError> {
        Self::condition(if not { Condition::Not(Box::new(positive)) } else { positive }, at, depth)
    }

    fn not(self, at: usize) -> Result<Self, SelectorError> {
        let depth = self.depth;
        Self::condition(Condition::Not(Box::new(self.into_condition()?)), at, depth)
    }

    fn negate(self, at: usize) -> Result<Self, SelectorError> {
        match self.operand {
            Operand::Literal(value) if value.number().is_some() => {
                Ok(Self::leaf(Operand::Literal(negate(&value)), at))
            }
            operand => Self::above(Operand::Negate(Box::new(operand)), at, self.depth),
        }
    }

    fn arithmetic(self, operator: Arithmetic, right: Self) -> Result<Self, SelectorError> {
        let (left, depth) = (Box::new(self.operand), self.depth.max(right.depth));
        Self::above(Operand::Arithmetic { left, operator, right: Box::new(right.operand) }, self.at, depth)
    }

    fn or(self, right: Self) -> Result<Self, SelectorError> {
        let at = self.at;
        let (mut conditions, depth) = match (self.depth, right.depth, self.into_condition()?) {
            // A chain has one level of its own, which the longer one shares.
            (left, right, Condition::Any(conditions)) => (conditions, right.max(left - 1)),
            (left, right, other) => (vec![other], right.max(left)),
        };
        conditions.push(right.into_condition()?);
        Self::condition(Condition::Any(conditions), at, depth)
    }

    fn and(self, right: Self) -> Result<Self, SelectorError> {
        let at = self.at;
        let (mut conditions, depth) = match (self.depth, right.depth, self.into_condition()?) {
            (left, right, Condition::All(conditions)) => (conditions, right.max(left - 1)),
            (left, right, other) => (vec![other], right.max(left)),
        };
        conditions.push(right.into_condition()?);
        Self::condition(Condition::All(conditions), at, depth)
    }

    fn compare(self, comparison: Comparison, right: Self) -> Result<Self, SelectorError> {
        match comparison {
            Comparison::Equal | Comparison::NotEqual => self.check_equality(&right, comparison.symbol())?,
            _ => right.check_ordered(comparison.symbol())?,
        }
        let depth = self.depth.max(right.depth);
        let compare = Condition::Compare { left: self.operand, comparison, right: right.operand };
        Self::condition(compare, self.at, depth)
    }

    fn between(self, low: Self, high: Self, not: bool) -> Result<Self, SelectorError> {
        let (at, depth) = (self.at, self.depth.max(low.depth).max(high.depth));
        let (value, low, high) = (self.operand, low.operand, high.operand);
        let between = match not {
            false => Condition::Between { value, low, high },
            true => Condition::NotBetween { value, low, high },
        };
        Self::condition(between, at, depth)
    }

    fn into_condition(self) -> Result<Condition, SelectorError> {
        match self.operand {
            Operand::Condition(condition) => Ok(*condition),
            Operand::Field(name) => Ok(Condition::Field(name)),
            Operand::Literal(Value::Bool(truth)) => Ok(Condition::Constant(Some(truth))),
            Operand::Literal(Value::Null) => Ok(Condition::Constant(None)),
            Operand::Literal(_) | Operand::Negate(_) | Operand::Arithmetic { .. } => {
                Err(SelectorError::NotCondition { at: self.at })
            }
        }
    }

    /// What `<`, `BETWEEN` and their like accept: numbers and what may turn out to be one.
    fn check_ordered(&self, operator: &'static str) -> Result<(), SelectorError> {
        match &self.operand {
            Operand::Literal(value) if value.number().is_none() => {
                Err(SelectorError::NotComparable { at: self.at, operator })
            }
            Operand::Condition(_) => Err(SelectorError::NotComparable { at: self.at, operator }),
            _ => Ok(()),
        }
    }

    /// What `=` and `<>` accept: anything but `NULL`, and no boolean literal before one of another type.
    fn check_equality(&self, right: &Self, operator: &'static str) -> Result<(), SelectorError> {
        let at = match (&self.operand, &right.operand) {
            (Operand::Literal(Value::Null), _) => self.at,
            (_, Operand::Literal(Value::Null)) => right.at,
            (Operand::Literal(Value::Bool(_)), Operand::Literal(Value::Bool(_))) => return Ok(()),
            (Operand::Literal(Value::Bool(_)), Operand::Literal(_)) => right.at,
            _ => return Ok(()),
        };
        Err(SelectorError::NotComparable { at, operator })
    }
}

struct Parser<'t> {
    tokens: Tokens<'t>,
    /// Where the token ahead starts.
    at: usize,
    /// The token ahead.
    token: Token<'t>,
    /// How many calls of `nested` are under way.
    depth: usize,
    identifiers: BTreeSet<&'t str>,
}

impl<'t> Parser<'t> {
    /// Takes the token ahead.
    fn advance(&mut self) -> Result<Token<'t>, SelectorError> {
        let (at, token) = self.tokens.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn accept(&mut self, token: &Token<'_>) -> Result<bool, SelectorError> {
        let accepted = self.token == *token;
        if accepted {
            self.advance()?;
        }
        Ok(accepted)
    }

    fn expect(&mut self, token: &Token<'_>, expected: &'static str) -> Result<(), SelectorError> {
        if self.accept(token)? { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&self, expected: &'static str) -> SelectorError {
        SelectorError::Unexpected { at: self.at, expected, found: self.tokens.found(self.at) }
    }

    /// Reads an expression one level deeper.
    fn nested(&mut self, min: Level) -> Result<Expression, SelectorError> {
        if self.depth == DEPTH_MAX {
            return Err(SelectorError::TooDeep { at: self.at, limit: DEPTH_MAX });
        }
        self.depth += 1;
        let expression = self.expression(min);
        self.depth -= 1;
        expression
    }

    /// Reads an expression of operators that bind at least as tightly as `min`.
    fn expression(&mut self, min: Level) -> Result<Expression, SelectorError> {
        let mut left = self.prefix(min)?;
        while let Some(infix) = Infix::of(&self.token)
            && infix.level() >= min
        {
            left = self.infix(left, infix)?;
        }
        Ok(left)
    }

    /// Reads what stands before any infix operator.
    fn prefix(&mut self, min: Level) -> Result<Expression, SelectorError> {
        let at = self.at;
        match self.token {
            Token::Symbol(Symbol::Open) => {
                self.advance()?;
                let inner = self.nested(Level::Or)?;
                self.expect(&Token::Symbol(Symbol::Close), "an operator or )")?;
                Ok(Expression { at, ..inner })
            }
            Token::Keyword(Keyword::Not) => {
                self.advance()?;
                self.nested(if min <= Level::Equality { Level::Equality } else { Level::Prefix })?.not(at)
            }
            Token::Symbol(Symbol::Plus) => {
                self.advance()?;
                Ok(Expression { at, ..self.nested(Level::Prefix)? })
            }
            Token::Symbol(Symbol::Minus) => {
                self.advance()?;
                if self.accept(&Token::Whole(i64::MIN.unsigned_abs()))? {
                    return Ok(Expression::leaf(Operand::Literal(i64::MIN.into()), at));
                }
                self.nested(Level::Prefix)?.negate(at)
            }
            _ => Ok(Expression::leaf(self.leaf()?, at)),
        }
    }

    /// Reads a name or a literal.
    fn leaf(&mut self) -> Result<Operand, SelectorError> {
        let at = self.at;
        match &self.token {
            Token::Keyword(Keyword::Xpath) => {
                return Err(SelectorError::Unsupported { at, feature: "an XPATH expression" });
            }
            Token::Keyword(Keyword::Xquery) => {
                return Err(SelectorError::Unsupported { at, feature: "an XQUERY expression" });
            }
            Token::Keyword(Keyword::True | Keyword::False | Keyword::Null)
            | Token::Name(_)
            | Token::String(_)
            | Token::Whole(_)
            | Token::Float(_)
            | Token::Double(_) => {}
            Token::Keyword(_) | Token::Symbol(_) | Token::End => {
                return Err(self.unexpected("a field name, a literal, NOT, a sign or ("));
            }
        }
        Ok(Operand::Literal(match self.advance()? {
            Token::Name(_) if self.token == Token::Symbol(Symbol::Open) => {
                return Err(SelectorError::Unsupported { at, feature: "a function call" });
            }
            Token::Name(name) => {
                self.identifiers.insert(name);
                return Ok(Operand::Field(name.into()));
            }
            Token::Whole(value) => {
                let value = i64::try_from(value).map_err(|_| SelectorError::NumberOutOfRange { at })?;
                i32::try_from(value).map_or(Value::Long(value), Value::Int)
            }
            Token::Float(value) => value.into(),
            Token::Double(value) => value.into(),
            Token::String(value) => value.into(),
            Token::Keyword(Keyword::True) => true.into(),
            Token::Keyword(Keyword::False) => false.into(),
            // `NULL`; the others were refused above.
            Token::Keyword(_) | Token::Symbol(_) | Token::End => Value::Null,
        }))
    }

    /// Reads the rest of the expression that starts with `left` and goes on with `infix`, the token ahead.
    fn infix(&mut self, left: Expression, infix: Infix) -> Result<Expression, SelectorError> {
        self.advance()?;
        match infix {
            Infix::Or => left.or(self.expression(Level::And)?),
            Infix::And => left.and(self.expression(Level::Equality)?),
            Infix::Is => self.is(left),
            Infix::Not => match self.token {
                Token::Keyword(Keyword::Like) => self.advance().and_then(|_| self.like(left, true)),
                Token::Keyword(Keyword::Between) => self.advance().and_then(|_| self.between(left, true)),
                Token::Keyword(Keyword::In) => self.advance().and_then(|_| self.list(left, true)),
                _ => Err(self.unexpected("LIKE, BETWEEN or IN")),
            },
            Infix::Like => self.like(left, false),
            Infix::Between => self.between(left, false),
            Infix::In => self.list(left, false),
            Infix::Compare(comparison) if infix.level() == Level::Equality => {
                left.compare(comparison, self.expression(Level::Comparison)?)
            }
            Infix::Compare(comparison) => {
                left.check_ordered(comparison.symbol())?;
                left.compare(comparison, self.expression(Level::Sum)?)
            }
            Infix::Arithmetic(operator) => {
                let tighter = if infix.level() == Level::Sum { Level::Product } else { Level::Prefix };
                left.arithmetic(operator, self.expression(tighter)?)
            }
        }
    }

    /// Reads what follows `IS`.
    fn is(&mut self, left: Expression) -> Result<Expression, SelectorError> {
        let not = self.accept(&Token::Keyword(Keyword::Not))?;
        self.expect(&Token::Keyword(Keyword::Null), if not { "NULL" } else { "NULL or NOT NULL" })?;
        Expression::condition_or_not(not, Condition::IsNull(left.operand), left.at, left.depth)
    }

    /// Reads what follows `BETWEEN`.
    fn between(&mut self, value: Expression, not: bool) -> Result<Expression, SelectorError> {
        value.check_ordered("BETWEEN")?;
        let low = self.expression(Level::Sum)?;
        low.check_ordered("BETWEEN")?;
        self.expect(&Token::Keyword(Keyword::And), "an operator or AND")?;
        let high = self.expression(Level::Sum)?;
        high.check_ordered("BETWEEN")?;
        value.between(low, high, not)
    }

    /// Reads what follows `LIKE`.
    fn like(&mut self, value: Expression, not: bool) -> Result<Expression, SelectorError> {
        let at = self.at;
        let text = self.string("a pattern in quotes")?;
        if text.len() > PATTERN_BYTES_MAX {
            return Err(SelectorError::PatternTooLong { at, bytes: text.len(), limit: PATTERN_BYTES_MAX });
        }
        let mut escape = None;
        if self.accept(&Token::Keyword(Keyword::Escape))? {
            let at = self.at;
            let text = self.string("a character in quotes")?;
            let mut chars = text.chars();
            escape = chars.next();
            if escape.is_none() || chars.next().is_some() {
                return Err(SelectorError::EscapeLength { at, chars: text.chars().count() });
            }
        }
        let like = Condition::Like { value: value.operand, pattern: Pattern::new(&text, escape) };
        Expression::condition_or_not(not, like, value.at, value.depth)
    }

    /// Reads what follows `IN`.
    fn list(&mut self, left: Expression, not: bool) -> Result<Expression, SelectorError> {
        let Operand::Field(field) = left.operand else {
            return Err(SelectorError::NotField { at: left.at });
        };
        self.expect(&Token::Symbol(Symbol::Open), "(")?;
        let mut list = BTreeSet::new();
        loop {
            list.insert(self.string("a string in quotes")?.into_boxed_str());
            if !self.accept(&Token::Symbol(Symbol::Comma))? {
                break;
            }
        }
        self.expect(&Token::Symbol(Symbol::Close), ", or )")?;
        let list = list.into_iter().collect();
        Expression::condition_or_not(not, Condition::In { field, list }, left.at, left.depth)
    }

    fn string(&mut self, expected: &'static str) -> Result<String, SelectorError> {
        if !matches!(self.token, Token::String(_)) {
            return Err(self.unexpected(expected));
        }
        match self.advance()? {
            Token::String(text) => Ok(text),
            _ => Err(self.unexpected(expected)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::{Fields, Selector};

    fn check(text: &str, expected: &SelectorError, message: &str) {
        match Selector::parse(text) {
            Ok(selector) => panic!("{text} is {selector:?}"),
            Err(error) => {
                assert_eq!(error, *expected, "{text}");
                assert_eq!(error.to_string(), message, "{text}");
            }
        }
    }

    fn check_unexpected(text: &str, at: usize, expected: &'static str, found: &str) {
        let error = SelectorError::Unexpected { at, expected, found: found.to_owned() };
        check(text, &error, &format!("expected {expected} at byte {at}, found {found}"));
    }

    #[test]
    fn nothing_is_no_selector() {
        for text in ["", " \t\r\n", "/* a */", "-- a\n", "convert_string_expressions:", "hyphenated_props: "]
        {
            check(text, &SelectorError::Empty, "selector is empty");
        }
    }

    #[test]
    fn what_does_not_fit_is_reported_where_it_stands() {
        let operand = "a field name, a literal, NOT, a sign or (";
        check_unexpected("=TEST 'test'", 0, operand, "=");
        check_unexpected("a = ", 4, operand, "the end");
        check_unexpected("a AND OR b", 6, operand, "OR");
        check_unexpected("a = (b", 6, "an operator or )", "the end");
        check_unexpected("a = b)", 5, "an operator or the end", ")");
        check_unexpected("a b", 2, "an operator or the end", "b");
        check_unexpected("a IS 5", 5, "NULL or NOT NULL", "5");
        check_unexpected("a IS NOT TRUE", 9, "NULL", "TRUE");
        check_unexpected("a NOT 5", 6, "LIKE, BETWEEN or IN", "5");
        check_unexpected("a LIKE b", 7, "a pattern in quotes", "b");
        check_unexpected("a LIKE 'b' ESCAPE 5", 18, "a character in quotes", "5");
        check_unexpected("a BETWEEN 1 OR 2", 12, "an operator or AND", "OR");
        check_unexpected("a IN 'b'", 5, "(", "'b'");
        check_unexpected("a IN ()", 6, "a string in quotes", ")");
        check_unexpected("a IN (1)", 6, "a string in quotes", "1");
        check_unexpected("a IN ('b',)", 10, "a string in quotes", ")");
        check_unexpected("a IN ('b' 'c')", 10, ", or )", "'c'");
        check_unexpected("a != 5", 2, "<> for not equal", "!=");
        check_unexpected("like = 5", 0, operand, "like");
        check_unexpected("convert_string_expressions:a = =", 31, operand, "=");
        check_unexpected("été = été été", 14, "an operator or the end", "été");
    }

    #[test]
    fn a_prefix_counts_only_at_the_start() {
        let error = SelectorError::UnexpectedCharacter { at: 27, found: ':' };
        check(
            " convert_string_expressions:a",
            &error,
            "character ':' at byte 27 has no meaning in a selector",
        );
    }

    #[test]
    fn a_long_token_is_shortened() {
        let text = format!("a '{}'", "é".repeat(100));
        check_unexpected(&text, 2, "an operator or the end", &format!("'{}…", "é".repeat(31)));
    }

    #[test]
    fn malformed_numbers_are_refused() {
        let octal = "an octal digit after a leading 0";
        check_unexpected("a = 08", 5, octal, "8");
        check_unexpected("a = 0x", 5, "an operator or the end", "x");
        check_unexpected("a = 5e", 5, "an operator or the end", "e");
        check_unexpected("a = 1.2.3", 7, "an operator or the end", ".3");
        for text in [
            "a = 9223372036854775808",
            "a = -(9223372036854775808)",
            "a = 99999999999999999999999L",
            "a = 0x8000000000000000",
            "a = -0x8000000000000000",
            "a = 01000000000000000000000",
        ] {
            let at = text.find(|c: char| c.is_ascii_digit()).unwrap();
            let message = format!("number at byte {at} does not fit in 64 bits");
            check(text, &SelectorError::NumberOutOfRange { at }, &message);
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        for text in ["a = '", "a = 'it''s", "a = ''''' "] {
            let error = SelectorError::UnterminatedString { at: 4 };
            check(text, &error, "string at byte 4 has no closing quote");
        }
        for text in ["a /*", "a /*/", "a /* *"] {
            check(text, &SelectorError::UnterminatedComment { at: 2 }, "comment at byte 2 has no end");
        }
    }

    #[test]
    fn only_conditions_select() {
        for (text, at) in [
            ("3+5", 0),
            ("'a'", 0),
            ("True AND 3+5", 9),
            ("-a", 0),
            ("NOT 'a'", 4),
            ("a = NOT 5", 8),
            ("f OR (1)", 5),
            ("1 OR f", 0),
        ] {
            let message = format!("expression at byte {at} is no condition");
            check(text, &SelectorError::NotCondition { at }, &message);
        }
    }

    #[test]
    fn only_numbers_are_ordered_and_null_is_not_compared() {
        for (text, at, operator) in [
            ("a > 'b'", 4, ">"),
            ("'a' <= b", 0, "<="),
            ("a < TRUE", 4, "<"),
            ("a < b < c", 0, "<"),
            ("a >= (b = c)", 5, ">="),
            ("a BETWEEN 'b' AND 5", 10, "BETWEEN"),
            ("a NOT BETWEEN 1 AND NULL", 20, "BETWEEN"),
            ("a = NULL", 4, "="),
            ("NULL <> a", 0, "<>"),
            ("TRUE = 1", 7, "="),
        ] {
            let message = format!("operand at byte {at} cannot be compared by {operator}");
            check(text, &SelectorError::NotComparable { at, operator }, &message);
        }
    }

    #[test]
    fn only_fields_are_looked_for_in_a_list() {
        for text in ["'a' IN ('a')", "a + b IN ('a')", "(a IN ('a')) IN ('a')"] {
            let message = "expression at byte 0 is no field name, which IN needs";
            check(text, &SelectorError::NotField { at: 0 }, message);
        }
    }

    #[test]
    fn an_escape_is_one_character() {
        for (escape, chars) in [("", 0), ("ab", 2)] {
            let message = format!("escape at byte 18 has {chars} characters instead of one");
            check(
                &format!("a LIKE 'b' ESCAPE '{escape}'"),
                &SelectorError::EscapeLength { at: 18, chars },
                &message,
            );
        }
        assert!(Selector::parse("a LIKE 'b' ESCAPE 'é'").is_ok());
    }

    #[test]
    fn what_other_languages_have_is_named() {
        for (text, at, feature) in [
            ("XPATH '//a'", 0, "an XPATH expression"),
            ("a = 1 AND (xquery '/a')", 11, "an XQUERY expression"),
            ("NOT REGEX('a', b)", 4, "a function call"),
            ("\"a b\" = 1", 0, "a name in double quotes"),
        ] {
            let message = format!("{feature} at byte {at} is not supported");
            check(text, &SelectorError::Unsupported { at, feature }, &message);
        }
        for (text, at, found) in
            [("a.b = 1", 1, '.'), ("a = :b", 4, ':'), ("a\u{a0}= 1", 1, '\u{a0}'), ("a ! b", 2, '!')]
        {
            let message = format!("character {found:?} at byte {at} has no meaning in a selector");
            check(text, &SelectorError::UnexpectedCharacter { at, found }, &message);
        }
    }

    #[test]
    fn length_is_limited() {
        let longest = format!("a = '{}'", "x".repeat(TEXT_BYTES_MAX - 6));
        assert!(Selector::parse(&longest).is_ok());
        let error = SelectorError::TooLong { bytes: TEXT_BYTES_MAX + 1, limit: TEXT_BYTES_MAX };
        check(&format!("{longest} "), &error, "selector has 65536 bytes, the limit is 65535");

        let pattern = "x".repeat(PATTERN_BYTES_MAX);
        assert!(Selector::parse(&format!("a LIKE '{pattern}'")).is_ok());
        let error =
            SelectorError::PatternTooLong { at: 7, bytes: PATTERN_BYTES_MAX + 1, limit: PATTERN_BYTES_MAX };
        check(&format!("a LIKE '{pattern}x'"), &error, "pattern at byte 7 has 4097 bytes, the limit is 4096");
    }

    #[test]
    fn depth_is_limited_however_it_comes_about() {
        for (open, inner, close, deepest) in [
            ("(", "a", ")", DEPTH_MAX),
            ("NOT ", "a", "", DEPTH_MAX - 1),
            ("NOT (", "a", ")", DEPTH_MAX / 2),
            ("(b OR ", "a", ")", DEPTH_MAX - 1),
            ("(b OR c AND ", "a", ")", (DEPTH_MAX - 1) / 2),
            ("(1=", "a", ")", DEPTH_MAX - 1),
            ("", "a", " = a", DEPTH_MAX - 1),
        ] {
            let text = |levels: usize| format!("{}{inner}{}", open.repeat(levels), close.repeat(levels));
            assert!(Selector::parse(&text(deepest)).is_ok(), "{open}{inner}{close}");
            for levels in [deepest + 1, 5000] {
                let error = Selector::parse(&text(levels)).map(|_| ());
                assert!(
                    matches!(error, Err(SelectorError::TooDeep { limit: DEPTH_MAX, .. })),
                    "{open}: {error:?}"
                );
            }
        }
        for (signs, deepest) in [("- ", DEPTH_MAX - 2), ("+ ", DEPTH_MAX)] {
            let text = |count: usize| format!("1 = {}a", signs.repeat(count));
            assert!(Selector::parse(&text(deepest)).is_ok());
            assert!(matches!(Selector::parse(&text(deepest + 1)), Err(SelectorError::TooDeep { .. })));
        }
    }

    #[test]
    fn a_long_chain_of_conditions_is_not_deep() {
        struct Last;
        impl Fields for Last {
            fn field(&self, name: &str) -> Value<'_> {
                (name == "a4999").into()
            }
        }
        let mut text = "FALSE".to_owned();
        for i in 0..5000 {
            let _ = write!(text, " OR a{i}");
        }
        let selector = Selector::parse(&text).unwrap();
        assert!(selector.matches(&Last));
        assert_eq!(selector.identifiers().len(), 5000);
        assert!(Selector::parse(&text.replace("OR", "AND")).is_ok());
    }

    #[test]
    fn the_deepest_selectors_need_little_stack() {
        struct Nothing;
        impl Fields for Nothing {
            fn field(&self, _: &str) -> Value<'_> {
                Value::Null
            }
        }
        let use_them = || {
            for text in [
                format!("{}a{}", "(b OR NOT c = ".repeat(40), ")".repeat(40)),
                format!("{}a{}", "(1=".repeat(DEPTH_MAX - 1), ")".repeat(DEPTH_MAX - 1)),
                format!("{}a", "NOT ".repeat(DEPTH_MAX - 1)),
                format!("a{} = 1", "+a".repeat(DEPTH_MAX - 2)),
            ] {
                let selector = Selector::parse(&text).unwrap();
                assert!(!selector.clone().matches(&Nothing));
            }
        };
        // Half of what a thread of the runtime has, and without optimization.
        std::thread::Builder::new().stack_size(1 << 20).spawn(use_them).unwrap().join().unwrap();
    }

    #[test]
    fn a_selector_knows_its_text_and_its_fields() {
        let text = "convert_string_expressions: b = 1 OR (a LIKE 'x' AND b > c) -- d\n";
        let selector = Selector::parse(text).unwrap();
        assert_eq!(selector.text(), text);
        assert_eq!(selector.to_string(), text);
        assert_eq!(selector.identifiers().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
