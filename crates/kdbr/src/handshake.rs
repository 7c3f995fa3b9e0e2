//! Who is on the other end: HELLO, HELLO_ACK, and the proofs where a secret is shared.

use std::mem;

use kahawai_types::{BootId, ClusterId, Epoch, ReplicaId};

use crate::auth::{Secrets, Side, Transcript, prove};
use crate::field::clip;
use crate::message::{AuthChallenge, AuthOk, AuthProof, Hello, HelloAck};
use crate::{ErrorCode, ErrorFrame, Frame, Mechanism, Nonce, Role};

/// Versions that a node speaks, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionRange {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

/// What this code speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 2, max: 2 };

impl VersionRange {
    /// The newest version in both.
    fn common(self, other: Self) -> Option<u32> {
        let (min, max) = (self.min.max(other.min), self.max.min(other.max));
        (min <= max).then_some(max)
    }
}

/// What this end says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Local {
    /// The dialler's choice; at the acceptor's end what the preamble said.
    pub role: Role,
    /// As a rule [`VERSIONS`].
    pub versions: VersionRange,
    /// Feature bits.
    pub features: u64,
    /// `None`: this node has not joined a cluster yet. It can dial, but not accept.
    pub cluster_id: Option<ClusterId>,
    /// This node and its data directory.
    pub replica: ReplicaId,
    /// This process.
    pub boot: BootId,
    /// The newest reign that this node has promised to follow; only the acceptor's is sent.
    pub epoch: Epoch,
    /// Name and version of this program.
    pub software: String,
    /// Random, never used before.
    pub nonce: Nonce,
    /// What the TLS session exports for this purpose, the same at both ends; `None` without TLS.
    pub exporter: Option<Vec<u8>>,
}

/// What the other end says of itself.
///
/// With a secret that is proven. With certificates the driver compares `replica` and `cluster_id` with the peer's. Whether such
/// a replica is a member is not known here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The cluster of both. The dialler that had none has now.
    pub cluster_id: ClusterId,
    /// The node and its data directory.
    pub replica: ReplicaId,
    /// Its process.
    pub boot: BootId,
    /// The version to speak.
    pub version: u32,
    /// Feature bits that both have.
    pub features: u64,
    /// The acceptor's promise; `None` at the acceptor's end, the dialler's comes with its first frame.
    pub epoch: Option<Epoch>,
    /// Name and version of its program.
    pub software: String,
}

/// Where a handshake is after a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Progress {
    /// It goes on.
    Continue,
    /// It is over; call [`Decoder::authenticated`](crate::Decoder::authenticated).
    Done(Peer),
    /// We refuse the peer. ERROR is among the frames to send; then the connection is closed.
    Failed(ErrorFrame),
    /// The peer refuses us. The connection is closed.
    Refused(ErrorFrame),
}

#[derive(Debug)]
enum State {
    /// The acceptor, at first.
    AwaitHello,
    /// The dialler, at first.
    AwaitHelloAck(Hello),
    /// The dialler, with a secret. What comes of it, if the acceptor proves itself.
    AwaitChallenge(Transcript, Peer),
    /// The acceptor, with a secret. What comes of it, if the dialler proves itself.
    AwaitProof(Transcript, Peer),
    /// The dialler, after its own proof.
    AwaitOk(Transcript, Peer),
    /// Done or failed.
    Over,
}

/// One end of a handshake, after the preamble.
///
/// The driver sends what is appended to `out`, whatever the progress, and gives up after
/// [`HANDSHAKE_TIMEOUT_MS`](crate::HANDSHAKE_TIMEOUT_MS).
#[derive(Debug)]
pub struct Handshake {
    local: Local,
    secrets: Secrets,
    state: State,
}

impl Handshake {
    /// The end that connected; appends HELLO to `out`.
    pub fn dialler(local: Local, secrets: Secrets, out: &mut Vec<Frame>) -> Self {
        let hello = Hello {
            version_min: local.versions.min,
            version_max: local.versions.max,
            features: local.features,
            cluster_id: local.cluster_id,
            replica: local.replica.clone(),
            boot: local.boot,
            role: local.role,
            mechanism: secrets.mechanism(),
            // What is proven has to be what is sent.
            software: clip(&local.software).to_owned(),
            nonce: local.nonce,
        };
        out.push(hello.clone().into());
        Self { local, secrets, state: State::AwaitHelloAck(hello) }
    }

    /// The end that was connected to.
    pub fn acceptor(local: Local, secrets: Secrets) -> Self {
        Self { local, secrets, state: State::AwaitHello }
    }

    /// Takes one frame, and appends to `out` what is to be sent.
    pub fn step(&mut self, frame: Frame, out: &mut Vec<Frame>) -> Progress {
        if let Frame::Error(error) = frame {
            self.state = State::Over;
            return Progress::Refused(error);
        }
        match self.advance(frame, out) {
            Ok(None) => Progress::Continue,
            Ok(Some(peer)) => Progress::Done(peer),
            Err(error) => {
                self.state = State::Over;
                out.push(error.clone().into());
                Progress::Failed(error)
            }
        }
    }

    fn advance(&mut self, frame: Frame, out: &mut Vec<Frame>) -> Result<Option<Peer>, ErrorFrame> {
        let (next, done) = match (mem::replace(&mut self.state, State::Over), frame) {
            (State::AwaitHello, Frame::Hello(hello)) => self.hello(hello, out)?,
            (State::AwaitHelloAck(hello), Frame::HelloAck(ack)) => self.hello_ack(&hello, ack)?,
            (State::AwaitChallenge(transcript, peer), Frame::AuthChallenge(challenge)) => {
                if challenge.mechanism != Mechanism::SharedSecret {
                    return Err(auth("the peer asks for another proof than the shared secret"));
                }
                let proofs = self.secrets.prove_all(Side::Dialler, &transcript);
                out.push(AuthProof { proofs }.into());
                (State::AwaitOk(transcript, peer), None)
            }
            (State::AwaitProof(transcript, peer), Frame::AuthProof(AuthProof { proofs })) => {
                let secret = self.secrets.recognise(Side::Dialler, &transcript, &proofs);
                let secret =
                    secret.ok_or_else(|| auth("the secret of the node that connects is not ours"))?;
                out.push(AuthOk { proof: prove(secret, Side::Acceptor, &transcript) }.into());
                (State::Over, Some(peer))
            }
            (State::AwaitOk(transcript, peer), Frame::AuthOk(AuthOk { proof })) => {
                let secret = self.secrets.recognise(Side::Acceptor, &transcript, &[proof]);
                secret.ok_or_else(|| auth("the secret of the node that was connected to is not ours"))?;
                (State::Over, Some(peer))
            }
            (_, frame) => {
                let text = format!("{} does not belong here in the handshake", frame.name());
                return Err(ErrorFrame::new(ErrorCode::Protocol, text));
            }
        };
        self.state = next;
        Ok(done)
    }

    /// The acceptor's part.
    fn hello(&self, hello: Hello, out: &mut Vec<Frame>) -> Result<(State, Option<Peer>), ErrorFrame> {
        let Local { role, versions, .. } = self.local;
        let theirs = VersionRange { min: hello.version_min, max: hello.version_max };
        let version = versions.common(theirs).ok_or_else(|| no_common_version(versions, theirs))?;
        if hello.role != role {
            let text = format!("HELLO says {:?}, the preamble {role:?}", hello.role);
            return Err(ErrorFrame::new(ErrorCode::Protocol, text));
        }
        let Some(cluster_id) = self.local.cluster_id else {
            return Err(ErrorFrame::new(ErrorCode::NotMaster, "this node has not joined a cluster yet"));
        };
        self.check_cluster(hello.cluster_id.unwrap_or(cluster_id), cluster_id)?;
        self.check_replica(&hello.replica)?;
        match (hello.mechanism, self.secrets.mechanism()) {
            (theirs, ours) if theirs == ours => {}
            (Mechanism::None, _) => {
                return Err(auth("a shared secret is needed here, and the peer has none"));
            }
            (_, _) => return Err(auth("the peer wants a shared secret, and none is configured here")),
        }

        let ack = HelloAck {
            version,
            features: hello.features & self.local.features,
            cluster_id,
            replica: self.local.replica.clone(),
            boot: self.local.boot,
            epoch: self.local.epoch,
            software: clip(&self.local.software).to_owned(),
            nonce: self.local.nonce,
        };
        let transcript = Transcript::new(&hello, &ack, self.local.exporter.as_deref());
        let peer = Peer {
            cluster_id,
            replica: hello.replica,
            boot: hello.boot,
            version,
            features: ack.features,
            epoch: None,
            software: hello.software,
        };
        out.push(ack.into());
        Ok(match self.secrets.mechanism() {
            Mechanism::None => (State::Over, Some(peer)),
            mechanism => {
                out.push(AuthChallenge { mechanism }.into());
                (State::AwaitProof(transcript, peer), None)
            }
        })
    }

    /// The dialler's part.
    fn hello_ack(&self, hello: &Hello, ack: HelloAck) -> Result<(State, Option<Peer>), ErrorFrame> {
        let chosen = VersionRange { min: ack.version, max: ack.version };
        let version = self
            .local
            .versions
            .common(chosen)
            .ok_or_else(|| no_common_version(self.local.versions, chosen))?;
        self.check_cluster(ack.cluster_id, self.local.cluster_id.unwrap_or(ack.cluster_id))?;
        self.check_replica(&ack.replica)?;
        let transcript = Transcript::new(hello, &ack, self.local.exporter.as_deref());
        let peer = Peer {
            cluster_id: ack.cluster_id,
            replica: ack.replica,
            boot: ack.boot,
            version,
            features: ack.features & self.local.features,
            epoch: Some(ack.epoch),
            software: ack.software,
        };
        Ok(match self.secrets.mechanism() {
            Mechanism::None => (State::Over, Some(peer)),
            Mechanism::SharedSecret => (State::AwaitChallenge(transcript, peer), None),
        })
    }

    fn check_cluster(&self, theirs: ClusterId, ours: ClusterId) -> Result<(), ErrorFrame> {
        if theirs == ours {
            return Ok(());
        }
        Err(ErrorFrame::new(
            ErrorCode::NotMember,
            format!("the peer is of cluster {theirs}, we are of {ours}"),
        ))
    }

    /// Also what a proof that is sent back to where it came from would need.
    fn check_replica(&self, theirs: &ReplicaId) -> Result<(), ErrorFrame> {
        if theirs.store != self.local.replica.store {
            return Ok(());
        }
        let text =
            format!("the peer's data directory {theirs} is ours: a copy of a disk, or we talk to ourselves");
        Err(ErrorFrame::new(ErrorCode::NotMember, text))
    }
}

fn auth(text: &str) -> ErrorFrame {
    ErrorFrame::new(ErrorCode::Auth, text)
}

fn no_common_version(ours: VersionRange, theirs: VersionRange) -> ErrorFrame {
    let text =
        format!("we speak versions {} to {}, the peer {} to {}", ours.min, ours.max, theirs.min, theirs.max);
    ErrorFrame::new(ErrorCode::Version, text)
}
