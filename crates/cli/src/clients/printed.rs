//! Messages on standard output.

use std::io::Write;

use kahawai_stomp::client::Received;
use serde_json::{Map, Value};

/// The body as it is, and a line end.
pub(super) fn body(message: &Received<'_>, out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(message.body())?;
    out.write_all(b"\n")
}

/// One object in one line: `headers`, and the body as `body`, or as `body_hex` where it is not UTF-8.
pub(super) fn json(message: &Received<'_>, out: &mut impl Write) -> std::io::Result<()> {
    let mut headers = Map::new();
    for (name, value) in message.headers() {
        // The first one counts.
        headers.entry(name).or_insert_with(|| Value::from(value));
    }
    let mut object = Map::from_iter([("headers".to_owned(), Value::Object(headers))]);
    match std::str::from_utf8(message.body()) {
        Ok(text) => object.insert("body".to_owned(), Value::from(text)),
        Err(_) => object.insert("body_hex".to_owned(), Value::from(hex(message.body()))),
    };
    writeln!(out, "{}", Value::Object(object))
}

/// One line for people: id, size, what is unusual about it, and how the body begins.
pub(super) fn line(message: &Received<'_>, out: &mut impl Write) -> std::io::Result<()> {
    const SHOWN_CHARS: usize = 60;
    let id = message.header("message-id").unwrap_or_default();
    write!(out, "{id}  {} bytes", message.body().len())?;
    for name in ["persistent", "priority", "expires", "redelivered"] {
        let value = message.header(name).unwrap_or_default();
        if !["", "0", "4", "false"].contains(&&*value) || (name == "priority" && value == "0") {
            write!(out, "  {name}={value}")?;
        }
    }
    let body = String::from_utf8_lossy(message.body());
    let begin: String = body.chars().take(SHOWN_CHARS).flat_map(shown).collect();
    let rest = if body.chars().nth(SHOWN_CHARS).is_some() { "…" } else { "" };
    writeln!(out, "  {begin}{rest}")
}

/// No character of a message may steer the terminal.
fn shown(char: char) -> impl Iterator<Item = char> {
    let escaped = char.is_control().then(|| char.escape_default());
    let plain = escaped.is_none().then_some(char);
    escaped.into_iter().flatten().chain(plain)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes
        .iter()
        .flat_map(|&byte| [byte >> 4, byte & 15])
        .filter_map(|digit| DIGITS.get(usize::from(digit)))
        .collect()
}

#[cfg(test)]
mod tests {
    use kahawai_stomp::client::{Client, ServerFrame};

    use super::*;

    fn check(frame: &[u8], expected: [&str; 3]) {
        let mut client = Client::default();
        client.input().extend_from_slice(frame);
        let Some(ServerFrame::Message(message)) = client.next().unwrap() else { panic!("no message") };
        let mut found = [vec![], vec![], vec![]];
        let [first, second, third] = &mut found;
        body(&message, first).unwrap();
        json(&message, second).unwrap();
        line(&message, third).unwrap();
        assert_eq!(found.map(|text| text.escape_ascii().to_string().replace("\\\"", "\"")), expected);
    }

    #[test]
    fn messages_are_printed_for_people_and_for_programs() {
        let expected = [
            "hello\\n",
            r#"{"headers":{"message-id":"m1","priority":"0","persistent":"true","a":"1"},"body":"hello"}\n"#,
            "m1  5 bytes  persistent=true  priority=0  hello\\n",
        ];
        check(b"MESSAGE\nmessage-id:m1\npriority:0\npersistent:true\na:1\na:2\n\nhello\0", expected);
        let expected = [
            "\\xff\\x1b\\n",
            r#"{"headers":{"message-id":"m2","priority":"4"},"body_hex":"ff1b"}\n"#,
            "m2  2 bytes  \\xef\\xbf\\xbd\\\\u{1b}\\n",
        ];
        check(b"MESSAGE\nmessage-id:m2\npriority:4\n\n\xff\x1b\0", expected);
    }
}
