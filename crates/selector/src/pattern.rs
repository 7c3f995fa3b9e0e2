//! The right side of `LIKE`: `%` is any run of characters, `_` any one character.

/// Longest `LIKE` pattern in bytes, quotes doubled inside it counted once. Matching costs at most this times
/// the value's length.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// A pattern, cut at each `%`: the first segment starts the value, the last one ends it, those between follow
/// each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pattern {
    first: Segment,
    /// Empty segments, between two `%` in a row, are left out.
    middle: Box<[Segment]>,
    /// `None` if there is no `%`: then `first` is the whole value.
    last: Option<Segment>,
}

/// What stands between two `%`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Segment(Vec<Atom>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Atom {
    Text(String),
    /// This many characters, whichever.
    Any(usize),
}

impl Pattern {
    /// `escape` makes an ordinary character of a `%`, a `_` or itself that follows it, and is one before any
    /// other.
    pub(crate) fn new(text: &str, escape: Option<char>) -> Self {
        let mut closed = Vec::new();
        let mut current = Segment::default();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if Some(c) == escape
                && let Some(escaped) = chars.next_if(|&next| next == '%' || next == '_' || next == c)
            {
                current.push_char(escaped);
            } else if c == '%' {
                closed.push(std::mem::take(&mut current));
            } else if c == '_' {
                current.push_any();
            } else {
                current.push_char(c);
            }
        }
        let mut closed = closed.into_iter();
        match closed.next() {
            None => Self { first: current, middle: Box::default(), last: None },
            Some(first) => {
                let middle = closed.filter(|segment| !segment.0.is_empty()).collect();
                Self { first, middle, last: Some(current) }
            }
        }
    }

    /// Whether the whole of `value` matches.
    pub(crate) fn matches(&self, value: &str) -> bool {
        let Some(rest) = self.first.strip_start(value) else {
            return false;
        };
        let Some(last) = &self.last else {
            return rest.is_empty();
        };
        let Some(mut rest) = last.strip_end(rest) else {
            return false;
        };
        // The leftmost place for each segment leaves most to those after it, so no earlier choice is ever taken
        // back.
        self.middle.iter().all(|segment| match segment.strip_through(rest) {
            Some(after) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

impl Segment {
    fn push_char(&mut self, c: char) {
        match self.0.last_mut() {
            Some(Atom::Text(text)) => text.push(c),
            _ => self.0.push(Atom::Text(c.into())),
        }
    }

    fn push_any(&mut self) {
        match self.0.last_mut() {
            Some(Atom::Any(count)) => *count += 1,
            _ => self.0.push(Atom::Any(1)),
        }
    }

    /// What follows the segment, if `value` starts with it.
    fn strip_start<'v>(&self, value: &'v str) -> Option<&'v str> {
        self.0.iter().try_fold(value, |rest, atom| match atom {
            Atom::Text(text) => rest.strip_prefix(text.as_str()),
            Atom::Any(count) => {
                let mut chars = rest.chars();
                chars.nth(count - 1)?;
                Some(chars.as_str())
            }
        })
    }

    /// What precedes the segment, if `value` ends with it.
    fn strip_end<'v>(&self, value: &'v str) -> Option<&'v str> {
        self.0.iter().rev().try_fold(value, |rest, atom| match atom {
            Atom::Text(text) => rest.strip_suffix(text.as_str()),
            Atom::Any(count) => {
                let mut chars = rest.chars();
                chars.nth_back(count - 1)?;
                Some(chars.as_str())
            }
        })
    }

    /// What follows the leftmost place of the segment in `value`.
    fn strip_through<'v>(&self, value: &'v str) -> Option<&'v str> {
        if let [Atom::Text(text)] = self.0.as_slice() {
            return value.split_once(text.as_str()).map(|(_, after)| after);
        }
        let mut rest = value.chars();
        loop {
            if let Some(after) = self.strip_start(rest.as_str()) {
                return Some(after);
            }
            rest.next()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pattern: &str, escape: Option<char>, matching: &[&str], others: &[&str]) {
        let compiled = Pattern::new(pattern, escape);
        for value in matching {
            assert!(compiled.matches(value), "{value:?} LIKE {pattern:?}");
        }
        for value in others {
            assert!(!compiled.matches(value), "{value:?} NOT LIKE {pattern:?}");
        }
    }

    #[test]
    fn a_pattern_without_wildcards_is_the_value() {
        check("abc", None, &["abc"], &["ab", "abcd", "xabc", "ABC", ""]);
        check("", None, &[""], &["a"]);
    }

    #[test]
    fn percent_is_any_run_even_an_empty_one() {
        check("%", None, &["", "a", "a\nb"], &[]);
        check("12%3", None, &["123", "12993"], &["1234", "12", "x123"]);
        check("%a%%b%", None, &["ab", "xaxbx"], &["ba", "a", ""]);
        check("a%a", None, &["aa", "aba"], &["a"]);
        check("%ab%ab", None, &["abab", "abxab"], &["ab", "aab"]);
    }

    #[test]
    fn underscore_is_one_character_whatever_its_size() {
        check("l_se", None, &["lose", "l\nse", "l\u{1f600}se"], &["loose", "lse"]);
        check("__", None, &["ab", "\u{e9}\u{1f600}"], &["a", "abc"]);
        check("%_", None, &["a", "ab"], &[""]);
        check("_%_", None, &["ab", "abc"], &["", "a"]);
        check("%_b_%", None, &["abc", "bbbb"], &["ab", "bc", "b"]);
    }

    #[test]
    fn an_escape_makes_wildcards_ordinary() {
        check(r"\_%", Some('\\'), &["_foo", "_"], &["bar", r"\_"]);
        check("100!%", Some('!'), &["100%"], &["1000", "100!%"]);
        check("a!!b", Some('!'), &["a!b"], &["a!!b"]);
        check("!%%!_", Some('!'), &["%_", "%x_"], &["x_", "%x"]);
    }

    #[test]
    fn an_escape_before_another_character_is_itself() {
        check("a!b", Some('!'), &["a!b"], &["ab"]);
        check("a!", Some('!'), &["a!"], &["a"]);
        check("a%b", Some('%'), &["ab", "axb"], &["a%"]);
        check("a%%b", Some('%'), &["a%b"], &["ab", "axb"]);
        check("_a", Some('_'), &["xa"], &["_xa", "a"]);
    }

    #[test]
    fn what_regular_expressions_treat_specially_is_ordinary() {
        let punctuation = r"!#$&()*+,-./:;<=>?@[\]^`{|}~";
        check(punctuation, None, &[punctuation], &[""]);
        check(".*", None, &[".*"], &["ab"]);
    }

    #[test]
    fn a_hostile_pattern_is_matched_in_time() {
        let value = "a".repeat(20_000);
        check(&"%a_".repeat(1000), None, &[&value], &[]);
        check(&"a%".repeat(2000), None, &[&value], &["b"]);
        check(&format!("%{}b%", "a_".repeat(500)), None, &[], &[&value]);
    }

    /// By definition, one character at a time.
    fn matches_simply(pattern: &[char], value: &[char]) -> bool {
        match (pattern, value) {
            ([], []) => true,
            (['%', rest @ ..], []) => matches_simply(rest, value),
            (['%', rest @ ..], [_, tail @ ..]) => {
                matches_simply(rest, value) || matches_simply(pattern, tail)
            }
            (['_', rest @ ..], [_, tail @ ..]) => matches_simply(rest, tail),
            ([p, rest @ ..], [v, tail @ ..]) => p == v && matches_simply(rest, tail),
            ([], _) | (_, []) => false,
        }
    }

    proptest! {
        /// The segments find what trying every possibility finds.
        #[test]
        fn matching_agrees_with_trying_everything(pattern in "[ab\u{e9}%_]{0,8}", value in "[ab\u{e9}]{0,10}") {
            let expected =
                matches_simply(&pattern.chars().collect::<Vec<_>>(), &value.chars().collect::<Vec<_>>());
            prop_assert_eq!(Pattern::new(&pattern, None).matches(&value), expected);
        }

        /// A pattern that escapes every character matches its value only.
        #[test]
        fn an_escaped_value_matches_itself(value in "[ab!%_]{0,8}", other in "[ab!%_]{0,8}") {
            let pattern: String = value
                .chars()
                .flat_map(|c| matches!(c, '%' | '_' | '!').then_some('!').into_iter().chain([c]))
                .collect();
            let pattern = Pattern::new(&pattern, Some('!'));
            prop_assert!(pattern.matches(&value));
            prop_assert_eq!(pattern.matches(&other), other == value);
        }
    }
}
