//! A broker for tests: it answers frames as it is told and remembers them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use clap::Parser;

/// Runs `client` with an URL where so many connections are accepted. `answer` says what to send for a frame, both
/// without the NUL at their end; empty = nothing. Returns what the client returned and the frames after CONNECT, those
/// of one connection after those of another, with blanks for line ends.
pub(super) fn with_broker<R>(
    connections: usize,
    answer: impl Fn(&str) -> Vec<String> + Sync,
    client: impl FnOnce(&str) -> R,
) -> (R, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("stomp://{}", listener.local_addr().unwrap());
    std::thread::scope(|scope| {
        let mut served = Vec::new();
        let accepting = scope.spawn(|| {
            for _ in 0..connections {
                let (stream, _) = listener.accept().unwrap();
                let answer = &answer;
                served.push(scope.spawn(move || serve(stream, answer)));
            }
            served
        });
        let result = client(&url);
        let frames =
            accepting.join().unwrap().into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (result, frames)
    })
}

fn serve(mut stream: TcpStream, answer: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let (mut frames, mut input, mut chunk) = (Vec::new(), Vec::new(), [0; 4096]);
    loop {
        while let Some(end) = input.iter().position(|&byte| byte == 0) {
            let frame: Vec<u8> = input.drain(..=end).collect();
            let frame = String::from_utf8(frame[..end].to_vec()).unwrap();
            let mut answers = answer(&frame);
            if frame.starts_with("CONNECT\n") && answers.is_empty() {
                answers.push("CONNECTED\nversion:1.2\n\n".to_owned());
            } else if !frame.starts_with("CONNECT\n") {
                frames.push(frame.trim_end().replace('\n', " "));
            }
            for answer in answers {
                stream.write_all(answer.as_bytes()).unwrap();
                stream.write_all(&[0]).unwrap();
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return frames,
            Ok(count) => input.extend_from_slice(&chunk[..count]),
        }
    }
}

/// The receipt that a frame asks for, if any.
pub(super) fn receipt(frame: &str) -> Vec<String> {
    let header = frame.lines().find_map(|line| line.strip_prefix("receipt:"));
    header.map(|id| format!("RECEIPT\nreceipt-id:{id}\n\n")).into_iter().collect()
}

/// Arguments out of a command line, `URL` in it replaced.
pub(super) fn arguments<A: clap::Args>(line: &str, url: &str) -> A {
    #[derive(Parser)]
    struct Line<A: clap::Args> {
        #[command(flatten)]
        args: A,
    }
    let words = std::iter::once("kahawai").chain(line.split_whitespace());
    Line::parse_from(words.map(|word| if word == "URL" { url } else { word })).args
}
