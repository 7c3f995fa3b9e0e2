//! Cuts the text of a selector into words, numbers, strings and symbols.

use crate::SelectorError;

/// How much of the text an error repeats.
const FOUND_CHARS_MAX: usize = 32;

const LINE_BREAKS: [char; 2] = ['\n', '\r'];

/// The smallest part of a selector.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Token<'t> {
    Name(&'t str),
    Keyword(Keyword),
    /// A string, without its quotes.
    String(String),
    /// A whole number of at most 2^63, which only a minus sign in front makes a long.
    Whole(u64),
    Float(f32),
    Double(f64),
    Symbol(Symbol),
    End,
}

/// A reserved word, in any mixture of upper and lower case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keyword {
    And,
    Between,
    Escape,
    False,
    In,
    Is,
    Like,
    Not,
    Null,
    Or,
    True,
    Xpath,
    Xquery,
}

const KEYWORDS: [(&str, Keyword); 13] = [
    ("AND", Keyword::And),
    ("BETWEEN", Keyword::Between),
    ("ESCAPE", Keyword::Escape),
    ("FALSE", Keyword::False),
    ("IN", Keyword::In),
    ("IS", Keyword::Is),
    ("LIKE", Keyword::Like),
    ("NOT", Keyword::Not),
    ("NULL", Keyword::Null),
    ("OR", Keyword::Or),
    ("TRUE", Keyword::True),
    ("XPATH", Keyword::Xpath),
    ("XQUERY", Keyword::Xquery),
];

/// An operator or punctuation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Symbol {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Plus,
    Minus,
    Star,
    Slash,
    Percent,
    Comma,
    Open,
    Close,
}

/// Longer symbols before those that they start with.
const SYMBOLS: [(&str, Symbol); 14] = [
    ("=", Symbol::Equal),
    ("<>", Symbol::NotEqual),
    ("<=", Symbol::LessOrEqual),
    ("<", Symbol::Less),
    (">=", Symbol::GreaterOrEqual),
    (">", Symbol::Greater),
    ("+", Symbol::Plus),
    ("-", Symbol::Minus),
    ("*", Symbol::Star),
    ("/", Symbol::Slash),
    ("%", Symbol::Percent),
    (",", Symbol::Comma),
    ("(", Symbol::Open),
    (")", Symbol::Close),
];

/// Walks over the text; at each moment it stands between two tokens.
pub(crate) struct Tokens<'t> {
    text: &'t str,
    /// Where the rest starts, on a character boundary.
    at: usize,
    /// Whether names may contain `-`.
    hyphens: bool,
    /// Where the last line break is. Known ahead, so that a text with many `--` is not searched for each of
    /// them.
    last_break: Option<usize>,
}

impl<'t> Tokens<'t> {
    pub(crate) fn new(text: &'t str, at: usize, hyphens: bool) -> Self {
        Self { text, at, hyphens, last_break: text.rfind(LINE_BREAKS) }
    }

    /// The token from `start` to here, as an error shows it.
    pub(crate) fn found(&self, start: usize) -> String {
        let token = self.text.get(start..self.at).unwrap_or_default();
        if token.is_empty() {
            return "the end".to_owned();
        }
        match token.char_indices().nth(FOUND_CHARS_MAX) {
            None => token.to_owned(),
            Some((cut, _)) => format!("{}…", &token[..cut]),
        }
    }

    /// Cuts off the next token and says where it starts.
    pub(crate) fn next(&mut self) -> Result<(usize, Token<'t>), SelectorError> {
        self.skip_blanks()?;
        let at = self.at;
        let token = match self.rest().chars().next() {
            None => Token::End,
            Some('\'') => self.string()?,
            Some('0'..='9') => self.number()?,
            Some('.') if self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number()?,
            Some(c) if is_name_start(c) => self.word(),
            Some(c) => self.symbol(c)?,
        };
        Ok((at, token))
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    /// Cuts off everything up to the first character that is not `accepted`.
    fn take_while(&mut self, accepted: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !accepted(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    /// Cuts off one character, if it is one of `accepted`.
    fn take(&mut self, accepted: &[char]) -> Option<char> {
        let next = self.rest().chars().next().filter(|c| accepted.contains(c))?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip_blanks(&mut self) -> Result<(), SelectorError> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c'));
            let rest = self.rest();
            if let Some(comment) = rest.strip_prefix("/*") {
                let Some(bytes) = comment.find("*/") else {
                    return Err(SelectorError::UnterminatedComment { at: self.at });
                };
                self.at += bytes + "/**/".len();
            } else if rest.starts_with("--") && self.last_break.is_some_and(|last| self.at < last) {
                self.take_while(|c| !LINE_BREAKS.contains(&c));
            } else {
                return Ok(());
            }
        }
    }

    fn string(&mut self) -> Result<Token<'t>, SelectorError> {
        let start = self.at;
        let mut string = String::new();
        while self.take(&['\'']).is_some() {
            // The quote that opens it, or the second of two, the first of which is part of the string.
            string.push_str(self.take_while(|c| c != '\''));
            if self.take(&['\'']).is_none() {
                return Err(SelectorError::UnterminatedString { at: start });
            }
            if self.rest().starts_with('\'') {
                string.push('\'');
            }
        }
        Ok(Token::String(string))
    }

    fn word(&mut self) -> Token<'t> {
        let hyphens = self.hyphens;
        let word = self.take_while(|c| is_name_start(c) || c.is_alphanumeric() || (hyphens && c == '-'));
        match KEYWORDS.iter().find(|(spelling, _)| spelling.eq_ignore_ascii_case(word)) {
            Some((_, keyword)) => Token::Keyword(*keyword),
            None => Token::Name(word),
        }
    }

    fn number(&mut self) -> Result<Token<'t>, SelectorError> {
        let start = self.at;
        let out_of_range = SelectorError::NumberOutOfRange { at: start };
        if let [b'0', b'x' | b'X', digit, ..] = self.rest().as_bytes()
            && digit.is_ascii_hexdigit()
        {
            self.at += "0x".len();
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            self.take(&['l', 'L']);
            return i64::from_str_radix(digits, 16)
                .map(|value| Token::Whole(value.unsigned_abs()))
                .map_err(|_| out_of_range);
        }
        let digits = self.take_while(|c| c.is_ascii_digit());
        let mut whole = true;
        if self.take(&['.']).is_some() {
            self.take_while(|c| c.is_ascii_digit());
            whole = false;
        }
        let before_exponent = self.at;
        if self.take(&['e', 'E']).is_some() {
            self.take(&['+', '-']);
            if self.take_while(|c| c.is_ascii_digit()).is_empty() {
                self.at = before_exponent;
            } else {
                whole = false;
            }
        }
        // All that Rust's parser can see here are digits, a point and an exponent, which it accepts.
        let decimal = &self.text[start..self.at];
        let unexpected =
            |at| SelectorError::Unexpected { at, expected: "a number", found: decimal.to_owned() };
        if self.take(&['f', 'F']).is_some() {
            return decimal.parse().map(Token::Float).map_err(|_| unexpected(start));
        }
        if self.take(&['d', 'D']).is_some() || !whole {
            return decimal.parse().map(Token::Double).map_err(|_| unexpected(start));
        }
        if digits.len() > 1 && digits.starts_with('0') {
            if let Some(offset) = digits.find(['8', '9']) {
                return Err(SelectorError::Unexpected {
                    at: start + offset,
                    expected: "an octal digit after a leading 0",
                    found: digits[offset..=offset].to_owned(),
                });
            }
            self.take(&['l', 'L']);
            return i64::from_str_radix(digits, 8)
                .map(|value| Token::Whole(value.unsigned_abs()))
                .map_err(|_| out_of_range);
        }
        self.take(&['l', 'L']);
        match digits.parse::<u64>() {
            Ok(value) if value <= i64::MIN.unsigned_abs() => Ok(Token::Whole(value)),
            _ => Err(out_of_range),
        }
    }

    fn symbol(&mut self, first: char) -> Result<Token<'t>, SelectorError> {
        let rest = self.rest();
        if let Some((spelling, symbol)) = SYMBOLS.iter().find(|(spelling, _)| rest.starts_with(spelling)) {
            self.at += spelling.len();
            return Ok(Token::Symbol(*symbol));
        }
        Err(match first {
            '!' if rest.starts_with("!=") => SelectorError::Unexpected {
                at: self.at,
                expected: "<> for not equal",
                found: "!=".to_owned(),
            },
            '"' => SelectorError::Unsupported { at: self.at, feature: "a name in double quotes" },
            _ => SelectorError::UnexpectedCharacter { at: self.at, found: first },
        })
    }
}

fn is_name_start(c: char) -> bool {
    c.is_alphabetic() || matches!(c, '_' | '$')
}
