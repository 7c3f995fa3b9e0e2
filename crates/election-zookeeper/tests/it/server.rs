//! A ZooKeeper server of our own, on a free port of this machine, with its data in a temporary directory.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Short, so that sessions may be short.
const TICK_MS: &str = "200";

pub(crate) struct Server {
    directory: TempDir,
    pub(crate) port: u16,
    pid: Mutex<Option<String>>,
}

impl Server {
    /// Returns once it answers.
    pub(crate) async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { directory: tempfile::tempdir().unwrap(), port, pid: Mutex::new(None) };
        server.start_again().await;
        server
    }

    pub(crate) async fn restart(&self) {
        self.stop("TERM").await;
        self.start_again().await;
    }

    async fn start_again(&self) {
        let directory = self.directory.path().to_owned();
        let port = self.port.to_string();
        let pid = tokio::task::spawn_blocking(move || {
            install();
            run(&["start", directory.to_str().unwrap(), &port])
        });
        *self.pid.lock().unwrap() = Some(pid.await.unwrap());
    }

    async fn stop(&self, signal: &'static str) {
        let pid = self.pid.lock().unwrap().take().unwrap();
        tokio::task::spawn_blocking(move || run(&["stop", &pid, signal])).await.unwrap();
    }

    /// Returns when the server keeps this session no more.
    pub(crate) async fn await_end_of(&self, session: &str) {
        let session = session.trim_start_matches("0x");
        loop {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            stream.write_all(b"dump").await.unwrap();
            let mut dump = String::new();
            stream.read_to_string(&mut dump).await.unwrap();
            assert!(dump.contains("Session"), "no dump: {dump}");
            if !dump.contains(session) {
                return;
            }
            // The server has no event for it, and a session takes long to end.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.lock().unwrap().take() {
            run(&["stop", &pid, "KILL"]);
        }
    }
}

fn run(arguments: &[&str]) -> String {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../interop/tools/zookeeper.sh");
    let output = Command::new(&script).args(arguments).env("ZK_TICK_MS", TICK_MS).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {arguments:?}: {errors}", script.display());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Debian's packages, if they are missing. What cannot be installed fails the test.
fn install() {
    static ONCE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONCE.lock();
    let is_there = |package: &str| {
        let output = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
        output.is_ok_and(|output| output.stdout.ends_with(b" installed"))
    };
    let has_java = Command::new("java").arg("-version").output().is_ok_and(|output| output.status.success());
    let mut missing: Vec<&str> = Vec::new();
    if !is_there("libzookeeper-java") {
        missing.push("zookeeper");
    }
    if !has_java {
        missing.push("default-jre-headless");
    }
    if missing.is_empty() {
        return;
    }
    let installed = Command::new("apt-get")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output();
    assert!(
        installed.as_ref().is_ok_and(|output| output.status.success()),
        "these tests need {missing:?}, and apt-get could not install them: {installed:?}"
    );
}
