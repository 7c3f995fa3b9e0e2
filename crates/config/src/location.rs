//! Where configuration files are: `xbean:ha.xml`, `file:/etc/ha.xml`, plain paths.

use std::path::Path;

/// The path in `xbean:path`, `file:path`, `xbean:file:path`, `xbean:classpath:path` or `path`.
pub(crate) fn strip_prefixes(text: &str) -> &str {
    let text = text.strip_prefix("xbean:").unwrap_or(text);
    let text = text.strip_prefix("classpath:").unwrap_or(text);
    match text.strip_prefix("file:") {
        // file:///etc/ha.xml, with the empty host that file URIs have.
        Some(path) => path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path),
        None => text,
    }
}

/// The paths that `text` may mean, the likeliest first. A name found in another file is looked for beside that one, then in
/// the working directory; with `file:` the other way round.
pub(crate) fn candidates(text: &str, referrer: Option<&str>) -> Result<Vec<String>, String> {
    let path = strip_prefixes(text);
    if path.is_empty() || path.contains(char::is_control) {
        return Err(format!("'{}' is not the name of a file", text.escape_default()));
    }
    // Another way of getting at it, which we do not have.
    let scheme = path.split_once(':').map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return Err(format!("'{text}' is not a file; write xbean:path or file:path"));
    }
    let mut paths = vec![path.to_owned()];
    let directory = referrer.and_then(|referrer| Path::new(referrer).parent());
    if let Some(directory) = directory.filter(|directory| !directory.as_os_str().is_empty()) {
        paths.push(directory.join(path).to_string_lossy().into_owned());
        paths.dedup();
        if !text.contains("file:") {
            paths.reverse();
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_looked_for_beside_the_one_that_names_it() {
        let check = |text: &str, referrer: Option<&str>, expected: &[&str]| {
            assert_eq!(candidates(text, referrer).unwrap(), expected, "{text}");
        };
        check("conf/ha.xml", None, &["conf/ha.xml"]);
        check("xbean:conf/ha.xml", None, &["conf/ha.xml"]);
        check("file:conf/ha.xml", None, &["conf/ha.xml"]);
        check("xbean:file:///etc/ha.xml", None, &["/etc/ha.xml"]);
        check("xbean:ha-broker.xml", Some("conf/ha.xml"), &["conf/ha-broker.xml", "ha-broker.xml"]);
        check("xbean:classpath:b.xml", Some("conf/ha.xml"), &["conf/b.xml", "b.xml"]);
        check(
            "file:./conf/c.properties",
            Some("conf/ha.xml"),
            &["./conf/c.properties", "conf/./conf/c.properties"],
        );
        check("xbean:ha-broker.xml", Some("ha.xml"), &["ha-broker.xml"]);
        check("file:/etc/b.xml", Some("conf/ha.xml"), &["/etc/b.xml"]);
        for text in ["", "xbean:", "http://host/ha.xml", "broker:(tcp://localhost:61616)", "a\nb"] {
            assert!(candidates(text, None).is_err(), "{text}");
        }
    }
}
