use bytes::BytesMut;
use kahawai_kdbr::{
    AuthOk, AuthProof, Decoder, ErrorCode, ErrorFrame, Frame, HANDSHAKE_FRAME_BYTES_MAX, Handshake, Hello,
    HelloAck, Local, Mechanism, Peer, Progress, Role, SECRET_BYTES_MIN, Secret, SecretError, Secrets,
    VERSIONS, VersionRange,
};
use kahawai_types::{BootId, ClusterId, Epoch, NodeId, ReplicaId, StoreId};

const CLUSTER: ClusterId = ClusterId(0x77);

fn local(number: u8) -> Local {
    Local {
        role: Role::Stream,
        versions: VERSIONS,
        features: 0b110 | u64::from(number),
        cluster_id: Some(CLUSTER),
        replica: ReplicaId { node: NodeId(format!("node-{number}")), store: StoreId(number.into()) },
        boot: BootId(u128::from(number) << 100),
        epoch: Epoch(40 + u64::from(number)),
        software: format!("kahawai {number}"),
        nonce: [number; 32],
        exporter: Some(b"what only this TLS session exports".to_vec()),
    }
}

/// Dialler 1 and acceptor 2, who share a secret.
struct Ends {
    dialler: Local,
    acceptor: Local,
    secrets: [Secrets; 2],
}

impl Default for Ends {
    fn default() -> Self {
        Self { dialler: local(1), acceptor: local(2), secrets: [secret("a"), secret("a")] }
    }
}

fn key(name: &str) -> Secret {
    Secret::new(name.repeat(SECRET_BYTES_MIN).into_bytes()).unwrap()
}

fn secret(name: &str) -> Secrets {
    Secrets::one(key(name))
}

fn rotating(new: &str, old: &str) -> Secrets {
    Secrets::rotating(key(new), key(old))
}

/// As the network carries it to a peer that it does not know yet.
fn carried(frame: &Frame) -> Frame {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    let carried = Decoder::default().decode(&mut bytes).unwrap();
    carried.expect("whole")
}

impl Ends {
    /// How it ends at the dialler and at the acceptor, with somebody between them who may change what they say.
    fn shake(self, mut between: impl FnMut(Frame) -> Frame) -> [Progress; 2] {
        let [mine, theirs] = self.secrets;
        let mut hello = Vec::new();
        let mut dialler = Handshake::dialler(self.dialler, mine, &mut hello);
        let mut acceptor = Handshake::acceptor(self.acceptor, theirs);
        let mut progress = [Progress::Continue, Progress::Continue];
        let mut sent = [Vec::new(), hello];
        while !sent.iter().all(Vec::is_empty) {
            for (at, end) in [(1, &mut acceptor), (0, &mut dialler)] {
                let mut answers = Vec::new();
                for frame in sent[at].drain(..) {
                    // Who is done or has failed reads no more of the handshake.
                    if progress[at] == Progress::Continue {
                        progress[at] = end.step(between(carried(&frame)), &mut answers);
                    }
                }
                sent[1 - at].append(&mut answers);
            }
        }
        progress
    }

    fn check_refused(self, by: End, code: ErrorCode, text: &str) {
        check_refused(&self.shake(|frame| frame), by, code, text);
    }
}

#[derive(Clone, Copy)]
enum End {
    Dialler,
    Acceptor,
}

/// One end refuses with that code and text; the other is told so, unless it was done.
fn check_refused(progress: &[Progress; 2], by: End, code: ErrorCode, text: &str) {
    let [dialler, acceptor] = progress;
    let (refuser, other) = match by {
        End::Dialler => (dialler, acceptor),
        End::Acceptor => (acceptor, dialler),
    };
    let Progress::Failed(refusal) = refuser else {
        panic!("{progress:?}");
    };
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.text.contains(text), "{refusal}");
    match other {
        Progress::Refused(told) => assert_eq!(told, refusal),
        Progress::Done(_) => assert!(matches!(by, End::Dialler), "the dialler was let in: {refusal}"),
        other => panic!("{other:?}"),
    }
}

/// Both ends are done, and know each other.
fn check_done(progress: &[Progress; 2]) {
    let peer = |number: u8, epoch| Peer {
        cluster_id: CLUSTER,
        replica: local(number).replica,
        boot: local(number).boot,
        version: 2,
        features: 0b110,
        epoch,
        software: local(number).software,
    };
    assert_eq!(progress, &[Progress::Done(peer(2, Some(Epoch(42)))), Progress::Done(peer(1, None))]);
}

#[test]
fn a_common_secret_lets_both_in() {
    let mut names = Vec::new();
    let progress = Ends::default().shake(|frame| {
        names.push(frame.name());
        frame
    });
    check_done(&progress);
    assert_eq!(names, ["HELLO", "HELLO_ACK", "AUTH_CHALLENGE", "AUTH_PROOF", "AUTH_OK"]);
}

#[test]
fn without_a_secret_two_frames_are_enough() {
    let mut names = Vec::new();
    let progress = Ends { secrets: [Secrets::NONE, Secrets::NONE], ..Ends::default() }.shake(|frame| {
        names.push(frame.name());
        frame
    });
    check_done(&progress);
    assert_eq!(names, ["HELLO", "HELLO_ACK"]);
}

#[test]
fn while_secrets_are_rotated_one_in_common_is_enough() {
    for secrets in [
        [secret("a"), rotating("b", "a")],
        [rotating("b", "a"), secret("a")],
        [rotating("b", "a"), secret("b")],
        [secret("b"), rotating("b", "a")],
        [rotating("b", "a"), rotating("a", "b")],
        [rotating("c", "b"), rotating("b", "a")],
    ] {
        check_done(&Ends { secrets, ..Ends::default() }.shake(|frame| frame));
    }
}

#[test]
fn other_secrets_are_refused() {
    for secrets in [
        [secret("a"), secret("b")],
        [rotating("a", "b"), secret("c")],
        [secret("c"), rotating("a", "b")],
        [rotating("a", "b"), rotating("c", "d")],
    ] {
        let ends = Ends { secrets, ..Ends::default() };
        ends.check_refused(End::Acceptor, ErrorCode::Auth, "secret of the node that connects is not ours");
    }
}

#[test]
fn a_secret_on_one_side_only_is_refused() {
    let ends = Ends { secrets: [Secrets::NONE, secret("a")], ..Ends::default() };
    ends.check_refused(End::Acceptor, ErrorCode::Auth, "a shared secret is needed here");
    let ends = Ends { secrets: [secret("a"), Secrets::NONE], ..Ends::default() };
    ends.check_refused(End::Acceptor, ErrorCode::Auth, "none is configured here");
}

/// Somebody between them pretends to each that the other has no secret.
#[test]
fn a_secret_cannot_be_talked_out_of() {
    let progress =
        Ends { secrets: [secret("a"), Secrets::NONE], ..Ends::default() }.shake(|frame| match frame {
            Frame::Hello(hello) => Hello { mechanism: Mechanism::None, ..hello }.into(),
            frame => frame,
        });
    // The acceptor has no secret and is satisfied; the dialler waits for a challenge that never comes.
    assert!(matches!(progress, [Progress::Continue, Progress::Done(_)]), "{progress:?}");
    let progress =
        Ends { secrets: [Secrets::NONE, secret("a")], ..Ends::default() }.shake(|frame| match frame {
            Frame::Hello(hello) => Hello { mechanism: Mechanism::SharedSecret, ..hello }.into(),
            frame => frame,
        });
    // The dialler has none and is satisfied; the acceptor waits for a proof.
    assert!(matches!(progress, [Progress::Done(_), Progress::Continue]), "{progress:?}");
}

#[test]
fn another_cluster_is_refused() {
    let dialler = Local { cluster_id: Some(ClusterId(0x78)), ..local(1) };
    let ends = Ends { dialler, ..Ends::default() };
    ends.check_refused(
        End::Acceptor,
        ErrorCode::NotMember,
        "the peer is of cluster 00000000000000000000000000000078",
    );
}

#[test]
fn who_never_joined_learns_the_cluster() {
    for secrets in [[secret("a"), secret("a")], [Secrets::NONE, Secrets::NONE]] {
        let dialler = Local { cluster_id: None, ..local(1) };
        check_done(&Ends { dialler, secrets, ..Ends::default() }.shake(|frame| frame));
    }
    let acceptor = Local { cluster_id: None, ..local(2) };
    let ends = Ends { acceptor, ..Ends::default() };
    ends.check_refused(End::Acceptor, ErrorCode::NotMaster, "has not joined a cluster");
}

#[test]
fn the_newest_common_version_is_spoken() {
    for (mine, theirs, common) in [((2, 2), (2, 2), 2), ((2, 5), (3, 4), 4), ((3, 4), (2, 3), 3)] {
        let versions = |(min, max)| VersionRange { min, max };
        let ends = Ends {
            dialler: Local { versions: versions(mine), ..local(1) },
            acceptor: Local { versions: versions(theirs), ..local(2) },
            ..Ends::default()
        };
        let [Progress::Done(acceptor), Progress::Done(dialler)] = ends.shake(|frame| frame) else {
            panic!("{mine:?} and {theirs:?} have something in common");
        };
        assert_eq!([acceptor.version, dialler.version], [common, common]);
    }
    for theirs in
        [VersionRange { min: 3, max: 9 }, VersionRange { min: 0, max: 1 }, VersionRange { min: 3, max: 1 }]
    {
        let ends = Ends { dialler: Local { versions: theirs, ..local(1) }, ..Ends::default() };
        ends.check_refused(End::Acceptor, ErrorCode::Version, "we speak versions 2 to 2");
    }
    let progress = Ends::default().shake(|frame| match frame {
        Frame::HelloAck(mut ack) => {
            ack.version = 3;
            ack.into()
        }
        frame => frame,
    });
    assert!(
        matches!(&progress[0], Progress::Failed(error) if error.code == ErrorCode::Version),
        "{progress:?}"
    );
}

#[test]
fn the_role_is_that_of_the_preamble() {
    let acceptor = Local { role: Role::Transfer, ..local(2) };
    let ends = Ends { acceptor, ..Ends::default() };
    ends.check_refused(End::Acceptor, ErrorCode::Protocol, "HELLO says Stream, the preamble Transfer");
}

#[test]
fn a_copy_of_our_disk_is_refused() {
    let dialler =
        Local { replica: ReplicaId { store: local(2).replica.store, ..local(1).replica }, ..local(1) };
    Ends { dialler, ..Ends::default() }.check_refused(End::Acceptor, ErrorCode::NotMember, "data directory");
}

/// A proxy has a TLS session with either, and they export different values.
#[test]
fn a_proof_is_worth_nothing_in_another_tls_session() {
    for exporter in [None, Some(Vec::new()), Some(b"what only that TLS session exports".to_vec())] {
        let acceptor = Local { exporter, ..local(2) };
        let ends = Ends { acceptor, ..Ends::default() };
        ends.check_refused(End::Acceptor, ErrorCode::Auth, "not ours");
    }
    let without = |number| Local { exporter: None, ..local(number) };
    let ends = Ends { dialler: without(1), acceptor: without(2), ..Ends::default() };
    check_done(&ends.shake(|frame| frame));
}

/// Whatever somebody between the two changes in what they say, the proofs do not fit any more.
#[test]
fn everything_that_is_said_is_proven() {
    let hello: [fn(&mut Hello); 7] = [
        |hello| hello.version_min = 1,
        |hello| hello.version_max = 3,
        |hello| hello.features ^= 8,
        |hello| hello.replica.node.0.push('x'),
        |hello| hello.boot.0 += 1,
        |hello| hello.software.push('x'),
        |hello| hello.nonce[0] ^= 1,
    ];
    for change in hello {
        let progress = Ends::default().shake(|frame| match frame {
            Frame::Hello(mut hello) => {
                change(&mut hello);
                hello.into()
            }
            frame => frame,
        });
        check_refused(&progress, End::Acceptor, ErrorCode::Auth, "not ours");
    }
    let store = |hello: &mut Hello| hello.replica.store.0 += 7;
    let cluster = |hello: &mut Hello| hello.cluster_id = None;
    for change in [store, cluster] {
        let progress = Ends::default().shake(|frame| match frame {
            Frame::Hello(mut hello) => {
                change(&mut hello);
                hello.into()
            }
            frame => frame,
        });
        check_refused(&progress, End::Acceptor, ErrorCode::Auth, "not ours");
    }
    let ack: [fn(&mut HelloAck); 6] = [
        |ack| ack.features ^= 8,
        |ack| ack.replica.node.0.push('x'),
        |ack| ack.boot.0 += 1,
        |ack| ack.epoch.0 += 1,
        |ack| ack.software.push('x'),
        |ack| ack.nonce[0] ^= 1,
    ];
    for change in ack {
        let progress = Ends::default().shake(|frame| match frame {
            Frame::HelloAck(mut ack) => {
                change(&mut ack);
                ack.into()
            }
            frame => frame,
        });
        check_refused(&progress, End::Acceptor, ErrorCode::Auth, "not ours");
    }
}

/// A connection that a replica opened for the stream is passed on as one for files.
#[test]
fn the_role_is_proven() {
    let ends = Ends { acceptor: Local { role: Role::Transfer, ..local(2) }, ..Ends::default() };
    let progress = ends.shake(|frame| match frame {
        Frame::Hello(hello) => Hello { role: Role::Transfer, ..hello }.into(),
        frame => frame,
    });
    check_refused(&progress, End::Acceptor, ErrorCode::Auth, "not ours");
}

/// The dialler looks at the answer as the acceptor did at the question; without a secret nobody else does.
#[test]
fn an_answer_that_does_not_fit_is_refused() {
    let ends = || Ends { secrets: [Secrets::NONE, Secrets::NONE], ..Ends::default() };
    let answered = |change: fn(&mut HelloAck)| {
        ends().shake(|frame| match frame {
            Frame::HelloAck(mut ack) => {
                change(&mut ack);
                ack.into()
            }
            frame => frame,
        })
    };
    let other_cluster = answered(|ack| ack.cluster_id.0 += 1);
    check_refused(&other_cluster, End::Dialler, ErrorCode::NotMember, "the peer is of cluster");
    let our_store = answered(|ack| ack.replica.store = local(1).replica.store);
    check_refused(&our_store, End::Dialler, ErrorCode::NotMember, "data directory");
    // Features that we never offered are none.
    check_done(&answered(|ack| ack.features = !1));
}

/// An acceptor that knows no secret sends the dialler's own proof back.
#[test]
fn a_reflected_proof_is_none() {
    let mut proof = None;
    let progress = Ends::default().shake(|frame| match frame {
        Frame::AuthProof(AuthProof { proofs }) => {
            proof = proofs.first().copied();
            AuthProof { proofs }.into()
        }
        Frame::AuthOk(_) => AuthOk { proof: proof.unwrap() }.into(),
        frame => frame,
    });
    check_refused(&progress, End::Dialler, ErrorCode::Auth, "node that was connected to is not ours");
}

/// Somebody who recorded a handshake repeats the dialler's part, towards an acceptor with a new nonce.
#[test]
fn a_replayed_proof_is_none() {
    let mut recorded = Vec::new();
    check_done(&Ends::default().shake(|frame| {
        recorded.push(frame.clone());
        frame
    }));
    let replay = |nonce| {
        let mut acceptor = Handshake::acceptor(Local { nonce, ..local(2) }, secret("a"));
        let mut out = Vec::new();
        let frames = recorded.iter().filter(|frame| matches!(frame, Frame::Hello(_) | Frame::AuthProof(_)));
        frames.map(|frame| acceptor.step(frame.clone(), &mut out)).last()
    };
    // With the same nonce it would be one: nothing else is wrong with the recording.
    assert!(matches!(replay([2; 32]), Some(Progress::Done(_))));
    assert!(matches!(replay([3; 32]), Some(Progress::Failed(error)) if error.code == ErrorCode::Auth));
}

/// The same with the acceptor's part, towards a dialler with a new nonce.
#[test]
fn a_replayed_answer_is_none() {
    let mut recorded = Vec::new();
    check_done(&Ends::default().shake(|frame| {
        recorded.push(frame.clone());
        frame
    }));
    let replay = |nonce| {
        let mut out = Vec::new();
        let mut dialler = Handshake::dialler(Local { nonce, ..local(1) }, secret("a"), &mut out);
        let frames = recorded.iter().filter(|frame| !matches!(frame, Frame::Hello(_) | Frame::AuthProof(_)));
        frames.map(|frame| dialler.step(frame.clone(), &mut out)).last()
    };
    assert!(matches!(replay([1; 32]), Some(Progress::Done(_))));
    assert!(matches!(replay([3; 32]), Some(Progress::Failed(error)) if error.code == ErrorCode::Auth));
}

#[test]
fn frames_out_of_order_end_it() {
    let mut out = Vec::new();
    let proof = || Frame::from(AuthProof { proofs: vec![[0; 32]] });
    let ok = || Frame::from(AuthOk { proof: [0; 32] });
    for (mut end, frame) in [
        (Handshake::acceptor(local(2), secret("a")), proof()),
        (Handshake::acceptor(local(2), Secrets::NONE), ok()),
        (Handshake::dialler(local(1), secret("a"), &mut out), ok()),
        (Handshake::dialler(local(1), secret("a"), &mut out), proof()),
    ] {
        out.clear();
        for frame in [frame, Frame::from(AuthOk { proof: [0; 32] })] {
            let Progress::Failed(error) = end.step(frame, &mut out) else {
                panic!("{end:?}");
            };
            assert_eq!(error.code, ErrorCode::Protocol);
            assert_eq!(out.pop(), Some(error.into()));
        }
    }
}

#[test]
fn a_refusal_by_the_peer_is_handed_on() {
    let error =
        ErrorFrame { primary: Some("c:61619".to_owned()), ..ErrorFrame::new(ErrorCode::NotMaster, "no") };
    let mut out = Vec::new();
    let mut dialler = Handshake::dialler(local(1), secret("a"), &mut out);
    out.clear();
    assert_eq!(dialler.step(error.clone().into(), &mut out), Progress::Refused(error));
    assert_eq!(out, []);
}

#[test]
fn the_longest_names_fit_a_frame_of_the_handshake() {
    let longest = |number| Local {
        replica: ReplicaId { node: NodeId("n".repeat(255)), store: StoreId(number) },
        boot: BootId(u128::MAX),
        software: "s".repeat(9999),
        ..local(1)
    };
    let ends = Ends { dialler: longest(1), acceptor: longest(2), ..Ends::default() };
    let progress = ends.shake(|frame| {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        assert!(bytes.len() < HANDSHAKE_FRAME_BYTES_MAX);
        frame
    });
    assert!(matches!(progress, [Progress::Done(_), Progress::Done(_)]), "{progress:?}");
}

#[test]
fn short_secrets_are_refused_and_none_is_shown() {
    assert_eq!(Secret::new(*b"fifteen bytes.."), Err(SecretError { bytes: 15 }));
    let shown = format!("{:?}", rotating("secret", "older"));
    assert!(!shown.contains("115") && !shown.contains("secret"), "{shown}");
}
