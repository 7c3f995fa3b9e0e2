//! The network between one process and ZooKeeper, with its faults.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Pass,
    /// No connection lives.
    Cut,
    /// Requests arrive, answers do not.
    Mute,
}

/// Every change ends the connections that it concerns.
#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    generation: u64,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<watch::Sender<State>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::Sender::new(State { mode: Mode::Pass, generation: 0 }));
        let states = state.subscribe();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, to, states.clone()));
            }
        });
        Self { port, state, task }
    }

    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| *state = State { mode: Mode::Cut, generation: state.generation + 1 });
    }

    pub(crate) fn heal(&self) {
        self.state.send_modify(|state| *state = State { mode: Mode::Pass, generation: state.generation + 1 });
    }

    pub(crate) fn mute(&self) {
        self.state.send_modify(|state| state.mode = Mode::Mute);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, to: u16, mut states: watch::Receiver<State>) {
    let start = *states.borrow_and_update();
    let server =
        if start.mode == Mode::Cut { None } else { TcpStream::connect(("127.0.0.1", to)).await.ok() };
    let Some(mut server) = server else { return };
    let (mut request, mut answer) = (vec![0; 65536], vec![0; 65536]);
    loop {
        let is_mute = states.borrow().mode == Mode::Mute;
        tokio::select! {
            changed = states.changed() => {
                if changed.is_err() || states.borrow().generation != start.generation {
                    return;
                }
            }
            read = client.read(&mut request) => match read {
                Ok(n) if n > 0 => {
                    if server.write_all(&request[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            read = server.read(&mut answer) => match read {
                Ok(n) if n > 0 => {
                    if !is_mute && client.write_all(&answer[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
