//! Answers that leave without their connection's task.
//!
//! A client that waits for each answer before it sends again spends its time on hand-overs. So a task that has nothing to do but
//! to wait for one receipt leaves the bytes here, and whoever confirms writes them: a wake-up less on the way.
//!
//! While something lies here the task writes nothing. It takes it back before it does anything else, and learns how much has
//! left. So there is one writer at a time, and nothing overtakes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use kahawai_types::Lsn;
use tokio::io::{AsyncWrite, Join};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::core::unpoisoned;

/// A socket that another thread may write to.
pub trait Socket: Send + Sync {
    /// Writes what there is room for, without waiting.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

/// One answer, and what it waits for.
struct Ready {
    lsn: Lsn,
    /// What has not left.
    bytes: BytesMut,
    written: usize,
    socket: Arc<dyn Socket>,
}

/// The place for it.
#[derive(Default)]
pub struct Ahead(Mutex<Option<Ready>>);

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}

impl Ahead {
    /// Leaves `bytes` to be written once `lsn` is confirmed.
    pub fn leave(&self, lsn: Lsn, bytes: BytesMut, socket: Arc<dyn Socket>) {
        *unpoisoned(&self.0) = Some(Ready { lsn, bytes, written: 0, socket });
    }

    /// Takes it back: how many bytes have left, and the buffer, to be used again.
    pub fn take_back(&self) -> Option<(usize, BytesMut)> {
        let Ready { mut bytes, written, .. } = unpoisoned(&self.0).take()?;
        bytes.clear();
        Some((written, bytes))
    }

    /// Everything below `position` is confirmed. `true` = the answer has left, the task has nothing to do.
    pub fn send(&self, position: Lsn) -> bool {
        let mut place = unpoisoned(&self.0);
        // It may be that the task took the answer back, and left the next.
        let Some(ready) = place.as_mut().filter(|ready| ready.lsn <= position) else { return false };
        if let Ok(written) = ready.socket.try_write(&ready.bytes) {
            ready.written += written;
            ready.bytes.advance(written);
        }
        // A socket that is full or broken is the task's business.
        ready.bytes.is_empty()
    }
}

/// The writing side of a socket, for two writers that take turns.
#[derive(Debug)]
pub struct Turns<W>(pub(crate) Arc<Mutex<W>>);

/// A TCP connection as its task uses it.
pub type Plain = Join<OwnedReadHalf, Turns<OwnedWriteHalf>>;

/// Splits a connection into what its task uses, and what others may write to.
pub fn plain(stream: TcpStream) -> (Plain, Arc<dyn Socket>) {
    let (read, write) = stream.into_split();
    let write = Arc::new(Mutex::new(write));
    (tokio::io::join(read, Turns(Arc::clone(&write))), write)
}

impl Socket for Mutex<OwnedWriteHalf> {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        unpoisoned(self).try_write(bytes)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Turns<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *unpoisoned(&self.0)).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *unpoisoned(&self.0)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *unpoisoned(&self.0)).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Takes as much as it is told to.
    struct Takes(io::Result<usize>);

    impl Socket for Takes {
        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            match &self.0 {
                Ok(room) => Ok(bytes.len().min(*room)),
                Err(error) => Err(error.kind().into()),
            }
        }
    }

    fn check(takes: io::Result<usize>, confirmed: u64, has_left: bool, written: usize) {
        let ahead = Ahead::default();
        assert!(!ahead.send(Lsn(100)), "nothing is there");
        ahead.leave(Lsn(50), BytesMut::from("answer"), Arc::new(Takes(takes)));
        assert_eq!(ahead.send(Lsn(confirmed)), has_left);
        assert_eq!(ahead.take_back().map(|(written, buffer)| (written, buffer.len())), Some((written, 0)));
        assert!(ahead.take_back().is_none() && !ahead.send(Lsn(100)), "it is gone");
    }

    #[test]
    fn an_answer_leaves_once_its_position_is_confirmed_as_far_as_there_is_room() {
        check(Ok(100), 49, false, 0);
        check(Ok(100), 50, true, 6);
        check(Ok(2), 60, false, 2);
        check(Err(io::ErrorKind::WouldBlock.into()), 60, false, 0);
        check(Err(io::ErrorKind::BrokenPipe.into()), 60, false, 0);
    }

    #[tokio::test]
    async fn two_writers_take_turns_on_a_socket_that_nobody_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let (mut stream, socket) = plain(listener.accept().await.expect("the client").0);
        let mut sent = 0_usize;
        let numbers = |from: usize| -> Vec<u8> { (from..from + 1000).map(|n| (n % 251) as u8).collect() };
        while let Ok(written) = socket.try_write(&numbers(sent)) {
            sent += written;
            // The other's turn, every time.
            match tokio::time::timeout(std::time::Duration::ZERO, stream.write(&numbers(sent))).await {
                Ok(written) => sent += written.expect("the client is there"),
                Err(_) => break,
            }
        }
        assert_eq!(socket.try_write(b"x").expect_err("full").kind(), io::ErrorKind::WouldBlock);
        drop(socket);
        stream.shutdown().await.expect("all is said");
        let mut came = Vec::new();
        client.read_to_end(&mut came).await.expect("what was written");
        assert!(came.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8), "out of order");
        assert_eq!(came.len(), sent);
    }
}
