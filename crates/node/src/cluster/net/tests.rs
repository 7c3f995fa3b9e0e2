//! Connections between nodes on loopback, with certificates that fit and with others.

use std::path::Path;

use kahawai_kdbr::{Goodbye, Secret, Secrets};
use kahawai_types::{NodeId, StoreId};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use tokio::net::TcpListener;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};

use kahawai_env::SystemClock;
use kahawai_replication::{EpochHistory, LocalLog, SinkEffect, SinkEvent, SinkOptions, SinkSession, Timing};
use kahawai_types::Lsn;

use super::super::following::{AckAhead, Said, SharedSink};
use super::super::peer_tls::PeerTlsFiles;
use super::*;

const CLUSTER: ClusterId = ClusterId(0xabc);

/// A CA, with a directory for what it signs.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

/// What is asked of it.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    host: &'a str,
    uri: &'a str,
    is_expired: bool,
    usages: &'a [ExtendedKeyUsagePurpose],
}

const BOTH: &[ExtendedKeyUsagePurpose] =
    &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

fn of(uri: &str) -> Wanted<'_> {
    Wanted { host: "localhost", uri, is_expired: false, usages: BOTH }
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA");
        Self { issuer, directory: tempfile::tempdir().expect("a directory") }
    }

    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn file(&self) -> std::path::PathBuf {
        self.write("ca.pem", &self.issuer.pem())
    }

    /// Files of a certificate, whose owner trusts `trusted`.
    fn files(&self, wanted: Wanted<'_>, trusted: &Path) -> PeerTlsFiles {
        let mut params = CertificateParams::new([wanted.host.to_owned()]).expect("a name");
        params.subject_alt_names.push(SanType::URI(wanted.uri.try_into().expect("a URI")));
        params.extended_key_usages = wanted.usages.to_vec();
        if wanted.is_expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let number = std::fs::read_dir(self.directory.path()).expect("listed").count();
        PeerTlsFiles {
            certificate: self.write(&format!("{number}.pem"), &certificate.pem()),
            key: self.write(&format!("{number}.key"), &key.serialize_pem()),
            authorities: trusted.to_owned(),
        }
    }

    /// TLS of the node that the URI names.
    fn tls(&self, wanted: Wanted<'_>, trusted: &Path) -> PeerTls {
        let (_, node) = wanted.uri.rsplit_once('/').expect("a node");
        PeerTls::read(&self.files(wanted, trusted), &NodeId(node.into())).expect("usable")
    }
}

/// A node: its number is its name and its store.
fn node(number: u128, tls: Option<PeerTls>) -> Credentials {
    Credentials {
        cluster_id: Some(CLUSTER),
        replica: ReplicaId { node: NodeId(format!("n{number}")), store: StoreId(number) },
        boot: BootId(number),
        protection: Protection { secrets: Secrets::NONE, tls },
    }
}

/// Both ends of a connection, which is dialled as `host`.
async fn meet(
    dialler: &Credentials,
    acceptor: &Credentials,
    host: &str,
) -> (Result<Connected, NetError>, Result<Connected, NetError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let address = format!("kdbr://{host}:{port}");
    let accepted = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        accept(stream, acceptor, Epoch(7)).await
    };
    let dialled = async {
        let mut connected = dial(&address, Role::Stream, dialler).await?;
        // A dialler may be through with its part when the acceptor refuses it: then the next frame says so.
        match tokio::time::timeout(Duration::from_millis(300), connected.reader.next()).await {
            Err(_) => Ok(connected),
            Ok(Ok(Frame::Error(error))) => Err(NetError::Refused(error)),
            Ok(Ok(frame)) => panic!("nobody has sent {}", frame.name()),
            Ok(Err(error)) => Err(error),
        }
    };
    tokio::join!(dialled, accepted)
}

#[tokio::test]
async fn two_nodes_of_one_ca_know_each_other() {
    let authority = Authority::new("ca");
    let ca = authority.file();
    let bound = format!("kdbr://{CLUSTER}/n2");
    for (secrets, uri) in [
        (Secrets::NONE, "kdbr:///n2"),
        (Secrets::one(Secret::new(*b"sixteen letters!").expect("long enough")), bound.as_str()),
    ] {
        let mut one = node(1, Some(authority.tls(of("kdbr:///n1"), &ca)));
        let mut two = node(2, Some(authority.tls(of(uri), &ca)));
        one.protection.secrets = secrets.clone();
        two.protection.secrets = secrets;
        let (dialled, accepted) = meet(&one, &two, "localhost").await;
        let (mut dialled, mut accepted) = (dialled.expect("dialled"), accepted.expect("accepted"));
        assert_eq!((dialled.peer.replica.node.0.as_str(), dialled.peer.epoch), ("n2", Some(Epoch(7))));
        assert_eq!((accepted.peer.replica.node.0.as_str(), accepted.role), ("n1", Role::Stream));
        let frame = Frame::Goodbye(Goodbye { epoch: Epoch(7), reason: "x".into(), reconnect_after_ms: None });
        dialled.writer.send(&frame).await.expect("sent");
        dialled.writer.flush().await.expect("sent");
        assert_eq!(accepted.reader.next().await.expect("received"), frame);
        drop(dialled);
        assert!(matches!(accepted.reader.next().await, Err(NetError::Closed)));
    }
}

#[tokio::test]
async fn who_does_not_fit_is_refused_and_both_ends_say_why() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (ca, other) = (ours.file(), theirs.file());
    let one = || Some(ours.tls(of("kdbr:///n1"), &ca));
    let two = || Some(ours.tls(of("kdbr:///n2"), &ca));
    let expired = Wanted { is_expired: true, ..of("kdbr:///n1") };
    let server_only = Wanted { usages: &[ExtendedKeyUsagePurpose::ServerAuth], ..of("kdbr:///n1") };
    let elsewhere = Wanted { host: "other.example", ..of("kdbr:///n2") };
    for (what, dialler, acceptor, at_dialler, at_acceptor) in [
        (
            "a CA that the acceptor does not know",
            Some(theirs.tls(of("kdbr:///n1"), &ca)),
            two(),
            "UnknownCA",
            "UnknownIssuer",
        ),
        (
            "a CA that the dialler does not know",
            Some(ours.tls(of("kdbr:///n1"), &other)),
            two(),
            "UnknownIssuer",
            "UnknownCA",
        ),
        ("expired", Some(ours.tls(expired, &ca)), two(), "CertificateExpired", "expired"),
        (
            "not for clients",
            Some(ours.tls(server_only, &ca)),
            two(),
            "refuses our certificate",
            "extended key usage for client",
        ),
        ("another host", one(), Some(ours.tls(elsewhere, &ca)), "other.example", "refuses our certificate"),
        (
            "another node's certificate at the dialler",
            Some(ours.tls(of("kdbr:///n3"), &ca)),
            two(),
            "certificate is for kdbr:///n3, and it says that it is kdbr://00000000000000000000000000000abc/n1",
            "certificate is for kdbr:///n3",
        ),
        (
            "another node's certificate at the acceptor",
            one(),
            Some(ours.tls(of("kdbr:///n3"), &ca)),
            "certificate is for kdbr:///n3",
            "",
        ),
        (
            "of another cluster",
            Some(ours.tls(of("kdbr://def/n1"), &ca)),
            two(),
            "kdbr://def/n1",
            "kdbr://def/n1",
        ),
        ("plaintext at the dialler", None, two(), "over TLS here", "speaks plaintext"),
        ("plaintext at the acceptor", one(), None, "does not speak TLS", "speaks TLS"),
    ] {
        let began = tokio::time::Instant::now();
        let (dialled, accepted) = meet(&node(1, dialler), &node(2, acceptor), "localhost").await;
        let said = dialled.map(|_| ()).expect_err(what);
        assert!(said.to_string().contains(at_dialler), "{what}, at the dialler: {said}");
        assert!(said.is_lasting(), "{what}: {said:?}");
        match accepted {
            // Refused by the dialler after the handshake: whoever reads next is told.
            Ok(mut connected) if at_acceptor.is_empty() => {
                assert!(matches!(connected.reader.next().await, Ok(Frame::Error(_))), "{what}");
            }
            accepted => {
                let said = accepted.map(|_| ()).expect_err(what);
                assert!(said.to_string().contains(at_acceptor), "{what}, at the acceptor: {said}");
            }
        }
        assert!(began.elapsed() < Duration::from_secs(3), "{what} takes long");
    }
}

/// An acceptor's answer to a TLS client of this configuration.
async fn answer_to(acceptor: &Credentials, client: ClientConfig) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let dialled = async {
        let stream = TcpStream::connect(address).await.expect("connected");
        let name = "localhost".try_into().expect("a name");
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client));
        if let Ok(mut stream) = connector.connect(name, stream).await {
            let mut out = BytesMut::new();
            put_preamble(Role::Stream, &mut out);
            let _ = stream.write_all(&out).await;
            let _ = stream.read_u8().await;
        }
    };
    let accepted = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        accept(stream, acceptor, Epoch(0)).await.map(|_| ()).expect_err("a stranger").to_string()
    };
    tokio::join!(accepted, dialled).0
}

#[tokio::test]
async fn a_stranger_without_certificate_or_with_an_older_tls_is_refused() {
    let authority = Authority::new("ca");
    let ca = authority.file();
    let acceptor = node(2, Some(authority.tls(of("kdbr:///n2"), &ca)));
    let mut roots = RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).expect("a root");
    let client = |version: &'static SupportedProtocolVersion| {
        ClientConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("versions")
            .with_root_certificates(roots.clone())
            .with_no_client_auth()
    };
    assert_eq!(answer_to(&acceptor, client(&version::TLS13)).await, "the peer shows no certificate");
    let older = answer_to(&acceptor, client(&version::TLS12)).await;
    assert!(older.contains("TLS: peer is incompatible"), "{older}");
}

#[tokio::test(start_paused = true)]
async fn a_tls_handshake_has_no_more_time_than_any_other() {
    let authority = Authority::new("ca");
    let acceptor = node(2, Some(authority.tls(of("kdbr:///n2"), &authority.file())));
    // Nothing; the beginning of a record; a record that says it is long.
    for sent in [&b""[..], &[0x16], &[0x16, 3, 1, 0x3f, 0xff, 1]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut stranger =
            TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        stranger.write_all(sent).await.expect("sent");
        let (stream, _) = listener.accept().await.expect("a connection");
        let began = tokio::time::Instant::now();
        let refused = accept(stream, &acceptor, Epoch(0)).await.map(|_| ());
        assert!(matches!(refused, Err(NetError::Timeout)), "{sent:?}: {refused:?}");
        let took = began.elapsed().as_millis();
        assert!((HANDSHAKE_TIMEOUT_MS as u128..).contains(&took) && took < 6000, "{sent:?}: {took} ms");
    }
}

#[test]
fn files_that_cannot_serve_are_named() {
    let authority = Authority::new("ca");
    let ca = authority.file();
    let good = authority.files(of("kdbr:///n1"), &ca);
    let other = authority.files(of("kdbr:///n2"), &ca);
    let empty = authority.write("empty.pem", "");
    let me = NodeId("n1".into());
    for (files, expected) in [
        (PeerTlsFiles { certificate: "/nowhere.pem".into(), ..good.clone() }, "/nowhere.pem: "),
        (PeerTlsFiles { key: "/nowhere.key".into(), ..good.clone() }, "/nowhere.key: "),
        (
            PeerTlsFiles { authorities: empty.clone(), ..good.clone() },
            "empty.pem: there is no certificate in it",
        ),
        (PeerTlsFiles { key: other.key.clone(), ..good.clone() }, "keys may not be consistent"),
        (other, "the certificate is not for n1: its names need the URI kdbr:///n1"),
    ] {
        let error = PeerTls::read(&files, &me).map(|_| ()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    PeerTls::read(&good, &me).expect("usable");
}

#[test]
fn the_name_that_a_certificate_needs_is_the_host_that_is_dialled() {
    for (address, expected) in [
        ("node1.example:61701", Some("node1.example")),
        ("127.0.0.1:1", Some("127.0.0.1")),
        ("[::1]:1", Some("::1")),
        ("no port", None),
        ("a b:1", None),
    ] {
        assert_eq!(
            server_name(address).map(|name| name.to_str().into_owned()).as_deref(),
            expected,
            "{address}"
        );
    }
}

/// A pair of ends without TLS.
async fn pair() -> (Ends, Ends) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let near = TcpStream::connect(address).await.expect("it listens");
    (Ends::plain(near), Ends::plain(listener.accept().await.expect("we came").0))
}

fn goodbye(number: u32, reason: &str) -> Frame {
    Frame::Goodbye(Goodbye { epoch: Epoch(1), reason: reason.to_owned(), reconnect_after_ms: Some(number) })
}

/// One sender has no time to wait, the other sends frames that no socket takes at once; the reader is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_two_senders_come_whole_and_in_the_order_of_each() {
    const EACH: u32 = 300;
    let (mut near, mut far) = pair().await;
    near.reader.decoder.authenticated();
    far.reader.decoder.authenticated();
    let line = near.writer.line().expect("there is no TLS");
    let quick = tokio::task::spawn_blocking(move || {
        let mut refused = 0_u32;
        for number in 0..EACH {
            while !line.try_send(|| Some(goodbye(number, "quick"))) {
                refused += 1;
                std::thread::yield_now();
            }
        }
        refused
    });
    let mut writer = near.writer;
    let slow = tokio::spawn(async move {
        let body = vec![7; READ_BYTES + 1000];
        for number in 0..EACH {
            let update = kahawai_kdbr::JournalUpdate {
                epoch: Epoch(1),
                first_lsn: kahawai_types::Lsn(number.into()),
                prev_chain: 0,
                commit: kahawai_types::Lsn(0),
                batches: body.clone().into(),
            };
            writer.send(&update.into()).await.expect("sent");
        }
        writer
    });
    let (mut of_quick, mut of_slow) = (0, 0);
    let all = async {
        while of_quick < EACH || of_slow < EACH {
            match far.reader.next().await.expect("a frame") {
                Frame::Goodbye(frame) => {
                    assert_eq!(frame.reconnect_after_ms, Some(of_quick));
                    of_quick += 1;
                }
                Frame::JournalUpdate(update) => {
                    assert_eq!(update.first_lsn.0, u64::from(of_slow));
                    assert_eq!(update.batches.len(), READ_BYTES + 1000);
                    of_slow += 1;
                }
                other => panic!("{}", other.name()),
            }
        }
    };
    // What the quick one leaves is sent by the task when it is asked to; here it sends something itself all the time, then flushes.
    let flushed = async {
        let mut writer = slow.await.expect("it ends");
        loop {
            writer.flush().await.expect("sent");
            writer.left().await;
        }
    };
    tokio::select! {
        () = all => {}
        () = flushed => unreachable!("it waits for more"),
    }
    quick.await.expect("it ends");
}

#[tokio::test]
async fn nobody_sends_ahead_on_a_connection_whose_task_is_gone_or_has_something_queued() {
    let (mut near, mut far) = pair().await;
    far.reader.decoder.authenticated();
    let line = near.writer.line().expect("there is no TLS");
    near.writer.add(|out| goodbye(1, "queued").encode(out));
    assert!(!line.try_send(|| panic!("it is not even made")), "something is in front of it");
    near.writer.flush().await.expect("sent");
    assert!(!line.try_send(|| None), "there was nothing to be sent after all");
    assert!(line.try_send(|| Some(goodbye(2, "ahead"))));
    drop(near.writer);
    assert!(!line.try_send(|| panic!("it is not even made")), "the task is gone");
    for number in 1..3 {
        let Frame::Goodbye(frame) = far.reader.next().await.expect("a frame") else { panic!("another") };
        assert_eq!(frame.reconnect_after_ms, Some(number));
    }
    assert!(matches!(far.reader.next().await, Err(NetError::Closed)), "the line keeps no socket open");
}

fn acknowledged(effects: &[SinkEffect]) -> Option<u32> {
    effects.iter().find_map(|effect| match effect {
        SinkEffect::Send(Frame::JournalUpdateAck(ack)) => Some(ack.durable.offset()),
        _ => None,
    })
}

/// An acknowledgement behind a higher one says that the replica has lost what it had, and costs it its place.
#[tokio::test]
async fn no_acknowledgement_overtakes_one_that_the_task_has_to_send() {
    let (mut near, mut far) = pair().await;
    far.reader.decoder.authenticated();
    let line = near.writer.line().expect("there is no TLS");
    let epoch = Epoch(1);
    let log = LocalLog {
        history: EpochHistory::new(Vec::new()).expect("empty"),
        first_lsn: Lsn::ZERO,
        end: Lsn::ZERO,
        durable: Lsn::ZERO,
        chain_at_end: 0,
        known_commit: Lsn::ZERO,
        applied: Lsn::ZERO,
        is_foreign_tail: false,
        unclean_generation: 0,
    };
    let options = SinkOptions {
        log,
        promised: epoch,
        epoch,
        receive_window: 1 << 20,
        address: String::new(),
        clients: Vec::new(),
        timing: Timing::default(),
    };
    let machine = SharedSink::new(SinkSession::new(options, 0));
    let step = |event| {
        let mut effects = Vec::new();
        let is_counted = unpoisoned(&machine).step(0, event, &mut effects);
        (effects, is_counted)
    };
    let response = kahawai_kdbr::SlaveInitResponse {
        epoch,
        mode: kahawai_kdbr::AttachMode::StreamFrom,
        common_lsn: Lsn::ZERO,
        common_epoch: Epoch(0),
        common_chain: 0,
        commit: Lsn::ZERO,
        unclean_generation: 0,
        epoch_history: Vec::new(),
        send_window: 1 << 20,
        heartbeat_interval_ms: 100,
    };
    let first_lsn = kahawai_types::Location::new(1, 0).lsn();
    let update = kahawai_kdbr::JournalUpdate {
        epoch,
        first_lsn,
        prev_chain: 0,
        commit: Lsn::ZERO,
        batches: vec![0; 500].into(),
    };
    for event in [SinkEvent::Start, SinkEvent::Frame(response.into()), SinkEvent::Frame(update.into())] {
        if step(event).1 {
            unpoisoned(&machine).sent();
        }
    }
    let ahead = AckAhead::new(Arc::clone(&machine), line, Arc::new(SystemClock));
    let chain = |bytes| kahawai_journal::Chain(bytes);
    let written = |bytes: u64| ahead.written(Lsn(first_lsn.0 + bytes), chain(bytes), |_| {});
    assert_eq!(written(100), None, "it is sent");
    near.writer.add(|out| goodbye(1, "queued").encode(out));
    let Some(Said::Acknowledged(left)) = written(200) else { panic!("something is in front of it") };
    assert_eq!(acknowledged(&left), Some(200));
    near.writer.flush().await.expect("sent");
    // Now it could be sent, and must not.
    let mut handed = Vec::new();
    for bytes in [300, 400] {
        let Some(Said::Written { durable, chain, is_counted: true }) = written(bytes) else {
            panic!("{bytes} overtakes 200")
        };
        handed.push(SinkEvent::Written { durable, chain: chain.0 });
    }
    // What the task does, in order.
    for effect in left {
        if let SinkEffect::Send(frame) = effect {
            near.writer.send(&frame).await.expect("sent");
        }
    }
    unpoisoned(&machine).sent();
    for event in handed {
        for effect in step(event).0 {
            if let SinkEffect::Send(frame) = effect {
                near.writer.send(&frame).await.expect("sent");
            }
        }
        // The step, and that it was handed over.
        unpoisoned(&machine).sent();
        unpoisoned(&machine).sent();
    }
    near.writer.flush().await.expect("sent");
    assert_eq!(written(500), None, "nothing is in front of it any more");
    let mut durable = Vec::new();
    while durable.len() < 5 {
        if let Frame::JournalUpdateAck(ack) = far.reader.next().await.expect("a frame") {
            durable.push(ack.durable.offset());
        }
    }
    assert_eq!(durable, [100, 200, 300, 400, 500]);
}
