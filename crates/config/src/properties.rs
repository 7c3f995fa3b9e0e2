use std::collections::BTreeMap;
use std::path::Path;

/// Longest text that placeholders may make of a value.
const RESOLVED_BYTES_MAX: usize = 64 << 10;
/// Placeholders that are looked up for one value: properties may refer to properties.
const LOOKUPS_MAX: u32 = 256;
/// How deep placeholders may lie in each other.
const DEPTH_MAX: u32 = 16;

/// What `${name}` stands for: ActiveMQ's system properties and the environment.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Properties(BTreeMap<String, String>);

/// Names only: environments hold passwords.
impl std::fmt::Debug for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why a value with placeholders has no meaning.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PlaceholderError {
    #[error("${{{0}}} is not defined; set it in the environment, or write ${{{0}:default}}")]
    Unknown(String),
    #[error("a placeholder has no closing brace")]
    Unclosed,
    #[error("Spring expressions, #{{…}}, are not evaluated; write the value or a ${{placeholder}}")]
    Expression,
    #[error("the placeholders refer to each other without end, or to too much text")]
    TooMuch,
}

impl Properties {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// What ActiveMQ's start script would define for the configuration file at `path`, and the environment.
    ///
    /// `activemq.conf` is the file's directory; `activemq.base` the directory above if that is called `conf`, else the same;
    /// `activemq.home` the same as the base; `activemq.data` is `data` in the base. `ACTIVEMQ_CONF`, `ACTIVEMQ_BASE`,
    /// `ACTIVEMQ_HOME` and `ACTIVEMQ_DATA` in the environment come first. An environment variable is known by its name, and with
    /// `env.` before it.
    pub fn for_file(path: &str, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut properties = Self::new();
        for (name, value) in environment {
            properties.set(format!("env.{name}"), value.clone());
            properties.set(name, value);
        }
        let file = crate::location::strip_prefixes(path);
        let directory = Path::new(file).parent().filter(|parent| !parent.as_os_str().is_empty());
        let conf = directory.unwrap_or(Path::new("."));
        let above = if conf.ends_with("conf") { conf.parent() } else { None };
        let base = match above {
            Some(above) if above.as_os_str().is_empty() => Path::new("."),
            Some(above) => above,
            None => conf,
        };
        let base = properties.or_variable("activemq.base", "ACTIVEMQ_BASE", &base.to_string_lossy());
        properties.or_variable("activemq.home", "ACTIVEMQ_HOME", &base);
        properties.or_variable("activemq.conf", "ACTIVEMQ_CONF", &conf.to_string_lossy());
        properties.or_variable("activemq.data", "ACTIVEMQ_DATA", &format!("{base}/data"));
        properties
    }

    fn or_variable(&mut self, name: &str, variable: &str, default: &str) -> String {
        let value = self.get(variable).unwrap_or(default).to_owned();
        self.set(name, value.clone());
        value
    }

    /// Defines one.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// What it stands for.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Puts values in the place of `${name}` and `${name:default}`, as Spring does.
    pub(crate) fn resolve(&self, text: &str) -> Result<String, PlaceholderError> {
        let mut lookups = LOOKUPS_MAX;
        let resolved = self.expand(text, DEPTH_MAX, &mut lookups)?;
        if resolved.contains("#{") { Err(PlaceholderError::Expression) } else { Ok(resolved) }
    }

    fn expand(&self, text: &str, depth: u32, lookups: &mut u32) -> Result<String, PlaceholderError> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("${") {
            *lookups = lookups.checked_sub(1).ok_or(PlaceholderError::TooMuch)?;
            let depth = depth.checked_sub(1).ok_or(PlaceholderError::TooMuch)?;
            out.push_str(before);
            let (inside, after) = split_at_closing(behind).ok_or(PlaceholderError::Unclosed)?;
            rest = after;
            let inside = self.expand_name(inside, depth, lookups)?;
            out.push_str(&inside);
            if out.len() > RESOLVED_BYTES_MAX {
                return Err(PlaceholderError::TooMuch);
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// What stands between the braces: a name, or a name, a colon and a default. The whole is looked up first: names may have
    /// colons.
    fn expand_name(&self, inside: &str, depth: u32, lookups: &mut u32) -> Result<String, PlaceholderError> {
        if let Some(value) = self.get(inside) {
            return self.expand(value, depth, lookups);
        }
        match inside.split_once(':') {
            Some((name, default)) => self.expand(self.get(name).unwrap_or(default), depth, lookups),
            None => Err(PlaceholderError::Unknown(inside.to_owned())),
        }
    }
}

/// Cuts behind the brace that closes an open one; a default may hold placeholders.
fn split_at_closing(text: &str) -> Option<(&str, &str)> {
    let mut open = 0usize;
    let mut previous = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if previous == b'$' => open += 1,
            b'}' if open == 0 => return Some((text.get(..at)?, text.get(at + 1..)?)),
            b'}' => open -= 1,
            _ => {}
        }
        previous = byte;
    }
    None
}

/// Reads a Java properties file. What makes no sense there is taken literally, as Java does.
pub(crate) fn parse_properties(text: &str) -> Vec<(String, String)> {
    let mut properties = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut logical = line.trim_start().to_owned();
        if logical.is_empty() || logical.starts_with(['#', '!']) {
            continue;
        }
        while ends_open(&logical) {
            logical.pop();
            match lines.next() {
                Some(next) => logical.push_str(next.trim_start()),
                None => break,
            }
        }
        let end = name_end(&logical);
        let (name, rest) = logical.split_at_checked(end).unwrap_or((&logical, ""));
        let rest = rest.trim_start();
        let value = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start();
        properties.push((unescape(name), unescape(value)));
    }
    properties
}

/// Whether a line goes on in the next: it ends in an odd number of backslashes.
fn ends_open(line: &str) -> bool {
    line.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1
}

/// Where the name ends: at a separator or blank that is not escaped.
fn name_end(line: &str) -> usize {
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '=' | ':' | ' ' | '\t' => return at,
            _ => {}
        }
    }
    line.len()
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('u') => {
                let code = chars.as_str().get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                match code.and_then(char::from_u32) {
                    Some(c) => {
                        out.push(c);
                        chars.by_ref().take(4).for_each(drop);
                    }
                    None => out.push('u'),
                }
            }
            Some(c) => out.push(c),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        let mut properties = Properties::new();
        for &(name, value) in pairs {
            properties.set(name, value);
        }
        properties
    }

    #[test]
    fn placeholders_are_replaced_as_spring_does() {
        let known = properties(&[("a", "1"), ("b", "<${a}>"), ("x:y", "colon"), ("empty", "")]);
        for (text, expected) in [
            ("", ""),
            ("plain $ text }", "plain $ text }"),
            ("${a}/${b}", "1/<1>"),
            ("${none:61613}", "61613"),
            ("${none:tcp://h:1}", "tcp://h:1"),
            ("${none:${b}}!", "<1>!"),
            ("${none:${none:${a}}}", "1"),
            ("${x:y}", "colon"),
            ("[${empty}][${none:}]", "[][]"),
        ] {
            assert_eq!(known.resolve(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_an_error() {
        let known = properties(&[
            ("loop", "${loop}"),
            ("l0", "${l1}${l1}"),
            ("l1", "${l0}"),
            ("big", &"x".repeat(40_000)),
        ]);
        for (text, expected) in [
            ("${none}", PlaceholderError::Unknown("none".into())),
            ("a ${loop", PlaceholderError::Unclosed),
            ("${none:${a}", PlaceholderError::Unclosed),
            ("${loop}", PlaceholderError::TooMuch),
            ("${l0}", PlaceholderError::TooMuch),
            ("${big}${big}", PlaceholderError::TooMuch),
            ("#{systemProperties['jetty.port']}", PlaceholderError::Expression),
        ] {
            assert_eq!(known.resolve(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn the_directories_follow_the_file_unless_the_environment_says_otherwise() {
        let check = |path: &str, environment: &[(&str, &str)], expected: [&str; 3]| {
            let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
            let properties = Properties::for_file(path, environment);
            let found =
                ["activemq.conf", "activemq.base", "activemq.data"].map(|name| properties.get(name).unwrap());
            assert_eq!(found, expected, "{path}");
        };
        check("conf/ha.xml", &[], ["conf", ".", "./data"]);
        check("xbean:file:/opt/mq/conf/ha.xml", &[], ["/opt/mq/conf", "/opt/mq", "/opt/mq/data"]);
        check("ha.xml", &[], [".", ".", "./data"]);
        check("/etc/mq/main.xml", &[], ["/etc/mq", "/etc/mq", "/etc/mq/data"]);
        check("conf/a.xml", &[("ACTIVEMQ_BASE", "/var/mq")], ["conf", "/var/mq", "/var/mq/data"]);
        check("conf/a.xml", &[("ACTIVEMQ_DATA", "/d"), ("ACTIVEMQ_CONF", "/c")], ["/c", ".", "/d"]);
    }

    #[test]
    fn properties_files_are_javas() {
        let text = "# comment\n! another\n\nactivemq.username=system\nactivemq.password = manager \nguest:pass\\\n    word\n\
                    blank value\nempty\nkey\\ with\\:signs=a\\=b\\u00e9\\q\nbroken=\\u12\r\nlast=\\";
        let found = parse_properties(text);
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            found,
            [
                ("activemq.username", "system"),
                ("activemq.password", "manager "),
                ("guest", "password"),
                ("blank", "value"),
                ("empty", ""),
                ("key with:signs", "a=béq"),
                ("broken", "u12"),
                ("last", ""),
            ]
        );
    }

    #[test]
    fn values_of_the_environment_are_not_shown() {
        assert_eq!(format!("{:?}", properties(&[("PASSWORD", "hunter2")])), r#"{"PASSWORD"}"#);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r"([a-c:=\\u{}$#é\n ]|\$\{){0,40}", value in r"([a-c:{}$]|\$\{){0,20}") {
            let _ = properties(&[("a", &value), ("b", &text)]).resolve(&text);
            let _ = parse_properties(&text);
        }

        /// Without placeholders a text stays what it is.
        #[test]
        fn plain_text_is_left_alone(text in "[^$#]{0,40}") {
            prop_assert_eq!(Properties::new().resolve(&text), Ok(text));
        }
    }
}
