//! Selectors as trees, how they are written with the fewest parentheses, and what they mean.

use std::collections::BTreeMap;

use kahawai_selector::{Fields, Value};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What a field of a reference message holds.
#[derive(Clone, PartialEq, Debug)]
pub enum Datum {
    Bool(bool),
    Int(i32),
    Text(String),
}

/// A reference message.
#[derive(Clone, Debug, Default)]
pub struct Message(BTreeMap<&'static str, Datum>);

impl Fields for Message {
    fn field(&self, name: &str) -> Value<'_> {
        match self.0.get(name) {
            None => Value::Null,
            Some(Datum::Bool(truth)) => (*truth).into(),
            Some(Datum::Int(number)) => (*number).into(),
            Some(Datum::Text(text)) => text.as_str().into(),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Term {
    Field(&'static str),
    Int(i32),
    Text(String),
    Negate(Box<Term>),
    Add(Box<Term>, Box<Term>),
    Subtract(Box<Term>, Box<Term>),
    Multiply(Box<Term>, Box<Term>),
}

#[derive(Clone, Debug)]
pub enum Test {
    Field(&'static str),
    Equal(Term, Term),
    NotEqual(Term, Term),
    Less(Term, Term),
    GreaterOrEqual(Term, Term),
    Between(Term, Term, Term),
    IsNull(Term),
    In(&'static str, Vec<String>),
    /// A text that has to occur; written `LIKE '%text%'`.
    Contains(&'static str, String),
    Not(Box<Test>),
    And(Box<Test>, Box<Test>),
    Or(Box<Test>, Box<Test>),
}

pub fn any_message() -> impl Strategy<Value = Message> {
    let datum = prop_oneof![
        any::<bool>().prop_map(Datum::Bool),
        (-3..4).prop_map(Datum::Int),
        any::<i32>().prop_map(Datum::Int),
        any_text().prop_map(Datum::Text),
    ];
    btree_map(select(&NAMES[..]), datum, 0..=NAMES.len()).prop_map(Message)
}

fn any_text() -> impl Strategy<Value = String> {
    "[xy'é -]{0,3}"
}

/// `texts`: whether strings may occur, which comparisons by `<` do not accept.
fn any_term(texts: bool) -> BoxedStrategy<Term> {
    let number = prop_oneof![
        3 => select(&NAMES[..]).prop_map(Term::Field),
        2 => (0..4).prop_map(Term::Int),
        1 => any::<i32>().prop_map(Term::Int),
    ];
    let leaf = match texts {
        true => prop_oneof![3 => number, 1 => any_text().prop_map(Term::Text)].boxed(),
        false => number.boxed(),
    };
    leaf.prop_recursive(3, 8, 2, |inner| {
        let pair = (inner.clone(), inner.clone()).prop_map(|(left, right)| (Box::new(left), Box::new(right)));
        prop_oneof![
            inner.prop_map(|term| Term::Negate(Box::new(term))),
            pair.clone().prop_map(|(left, right)| Term::Add(left, right)),
            pair.clone().prop_map(|(left, right)| Term::Subtract(left, right)),
            pair.prop_map(|(left, right)| Term::Multiply(left, right)),
        ]
    })
    .boxed()
}

pub fn any_test() -> impl Strategy<Value = Test> {
    let number = || any_term(false);
    let term = || any_term(true);
    let leaf = prop_oneof![
        select(&NAMES[..]).prop_map(Test::Field),
        (term(), term()).prop_map(|(left, right)| Test::Equal(left, right)),
        (term(), term()).prop_map(|(left, right)| Test::NotEqual(left, right)),
        (number(), number()).prop_map(|(left, right)| Test::Less(left, right)),
        (number(), number()).prop_map(|(left, right)| Test::GreaterOrEqual(left, right)),
        (number(), number(), number()).prop_map(|(value, low, high)| Test::Between(value, low, high)),
        term().prop_map(Test::IsNull),
        (select(&NAMES[..]), vec(any_text(), 1..4)).prop_map(|(name, list)| Test::In(name, list)),
        (select(&NAMES[..]), any_text()).prop_map(|(name, text)| Test::Contains(name, text)),
    ];
    leaf.prop_recursive(5, 24, 2, |inner| {
        let pair = (inner.clone(), inner.clone()).prop_map(|(left, right)| (Box::new(left), Box::new(right)));
        (option::weighted(0.7, pair), inner, any::<bool>()).prop_map(|(pair, single, or)| match pair {
            None => Test::Not(Box::new(single)),
            Some((left, right)) if or => Test::Or(left, right),
            Some((left, right)) => Test::And(left, right),
        })
    })
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Term {
    /// Written where operators have to bind tighter than `level`: 0 for a sum, 1 for a product, 2 for a sign.
    fn text(&self, level: u8) -> String {
        let (own, text) = match self {
            Self::Field(name) => (3, (*name).to_owned()),
            Self::Int(number) if *number < 0 => (2, format!("{number}")),
            Self::Int(number) => (3, format!("{number}")),
            Self::Text(text) => (3, quoted(text)),
            Self::Negate(term) => (2, format!("- {}", term.text(2))),
            Self::Add(left, right) => (0, format!("{} + {}", left.text(0), right.text(1))),
            Self::Subtract(left, right) => (0, format!("{} - {}", left.text(0), right.text(1))),
            Self::Multiply(left, right) => (1, format!("{}*{}", left.text(1), right.text(2))),
        };
        if own < level { format!("({text})") } else { text }
    }

    fn evaluate(&self, message: &Message) -> Option<Datum> {
        let numbers = |left: &Self, right: &Self, operation: fn(i32, i32) -> i32| match (
            left.evaluate(message)?,
            right.evaluate(message)?,
        ) {
            (Datum::Int(left), Datum::Int(right)) => Some(Datum::Int(operation(left, right))),
            _ => None,
        };
        match self {
            Self::Field(name) => message.0.get(name).cloned(),
            Self::Int(number) => Some(Datum::Int(*number)),
            Self::Text(text) => Some(Datum::Text(text.clone())),
            Self::Negate(term) => match term.evaluate(message)? {
                Datum::Int(number) => Some(Datum::Int(number.wrapping_neg())),
                _ => None,
            },
            Self::Add(left, right) => match (left.evaluate(message)?, right.evaluate(message)?) {
                (Datum::Text(left), Datum::Bool(right)) => Some(Datum::Text(format!("{left}{right}"))),
                (Datum::Text(left), Datum::Int(right)) => Some(Datum::Text(format!("{left}{right}"))),
                (Datum::Text(left), Datum::Text(right)) => Some(Datum::Text(left + &right)),
                _ => numbers(left, right, i32::wrapping_add),
            },
            Self::Subtract(left, right) => numbers(left, right, i32::wrapping_sub),
            Self::Multiply(left, right) => numbers(left, right, i32::wrapping_mul),
        }
    }
}

impl Test {
    pub fn text(&self) -> String {
        self.text_at(0)
    }

    /// Written where operators have to bind tighter than `level`: 0 for `OR`, 1 for `AND`, 2 for `NOT`.
    fn text_at(&self, level: u8) -> String {
        let (own, text) = match self {
            Self::Field(name) => (3, (*name).to_owned()),
            Self::Equal(left, right) => (3, format!("{} = {}", left.text(0), right.text(0))),
            Self::NotEqual(left, right) => (3, format!("{}<>{}", left.text(0), right.text(0))),
            Self::Less(left, right) => (3, format!("{} < {}", left.text(0), right.text(0))),
            Self::GreaterOrEqual(left, right) => (3, format!("{}>={}", left.text(0), right.text(0))),
            Self::Between(value, low, high) => {
                (3, format!("{} between {} and {}", value.text(0), low.text(0), high.text(0)))
            }
            Self::IsNull(term) => (3, format!("{} IS NULL", term.text(0))),
            Self::In(name, list) => (
                3,
                format!("{name} in ({})", list.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(",")),
            ),
            Self::Contains(name, text) => (3, format!("{name} LIKE {}", quoted(&format!("%{text}%")))),
            Self::Not(test) => (2, format!("NOT {}", test.text_at(2))),
            Self::And(left, right) => (1, format!("{} AND {}", left.text_at(1), right.text_at(2))),
            Self::Or(left, right) => (0, format!("{} OR {}", left.text_at(0), right.text_at(1))),
        };
        if own < level { format!("({text})") } else { text }
    }

    pub fn evaluate(&self, message: &Message) -> Option<bool> {
        let compare = |left: &Term, right: &Term, holds: fn(std::cmp::Ordering) -> bool| {
            Some(match (left.evaluate(message)?, right.evaluate(message)?) {
                (Datum::Bool(left), Datum::Bool(right)) => holds(left.cmp(&right)),
                (Datum::Int(left), Datum::Int(right)) => holds(left.cmp(&right)),
                (Datum::Text(left), Datum::Text(right)) => holds(left.cmp(&right)),
                _ => false,
            })
        };
        match self {
            Self::Field(name) => message.0.get(name).map(|datum| *datum == Datum::Bool(true)),
            Self::Equal(left, right) => compare(left, right, std::cmp::Ordering::is_eq),
            Self::NotEqual(left, right) => compare(left, right, std::cmp::Ordering::is_ne),
            Self::Less(left, right) => compare(left, right, std::cmp::Ordering::is_lt),
            Self::GreaterOrEqual(left, right) => compare(left, right, std::cmp::Ordering::is_ge),
            Self::Between(value, low, high) => and(
                compare(value, low, std::cmp::Ordering::is_ge),
                compare(value, high, std::cmp::Ordering::is_le),
            ),
            Self::IsNull(term) => Some(term.evaluate(message).is_none()),
            Self::In(name, list) => match message.0.get(name)? {
                Datum::Text(text) => Some(list.contains(text)),
                _ => None,
            },
            Self::Contains(name, part) => match message.0.get(name)? {
                Datum::Text(text) => Some(text.contains(part.as_str())),
                _ => Some(false),
            },
            Self::Not(test) => test.evaluate(message).map(|truth| !truth),
            Self::And(left, right) => and(left.evaluate(message), right.evaluate(message)),
            Self::Or(left, right) => match (left.evaluate(message), right.evaluate(message)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
        }
    }
}

fn and(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}
