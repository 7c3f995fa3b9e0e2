//! Proofs that both ends know the same secret, without sending it.
//!
//! A proof is HMAC-SHA-256 over who proves it, then everything that the two ends said of themselves, and the value that only
//! the two ends of one TLS session can compute. So it is worth nothing in another connection, towards another node, in the
//! other direction, or behind somebody who decrypts and passes on.

use std::fmt;

use hmac::{Hmac, Mac};
use kahawai_types::ReplicaId;
use sha2::Sha256;

use crate::message::{Hello, HelloAck};
use crate::{Mechanism, Proof};

/// Shortest secret. Who makes us dial it gets a proof, and may try words on it as long as it likes.
pub const SECRET_BYTES_MIN: usize = 16;

const DOMAIN: &[u8] = b"kdbr 2 shared secret";

/// Something that every node of a cluster knows and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

/// A secret that anybody could guess.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("secret of {bytes} bytes, at least {SECRET_BYTES_MIN} are needed")]
pub struct SecretError {
    /// Its length.
    pub bytes: usize,
}

impl Secret {
    /// A secret of at least [`SECRET_BYTES_MIN`] bytes.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, SecretError> {
        let bytes = bytes.into();
        match bytes.len() {
            short if short < SECRET_BYTES_MIN => Err(SecretError { bytes: short }),
            _ => Ok(Self(bytes)),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a node knows: nothing, one secret, or two while they are rotated. It gives proofs with all it has and takes one of any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// TLS or a loopback address has to be enough.
    pub const NONE: Self = Self(Vec::new());

    /// One secret.
    pub fn one(secret: Secret) -> Self {
        Self(vec![secret])
    }

    /// Two, so that the nodes of a cluster need not change theirs at the same moment.
    pub fn rotating(new: Secret, old: Secret) -> Self {
        Self(vec![new, old])
    }

    /// What to offer in HELLO.
    pub(crate) fn mechanism(&self) -> Mechanism {
        if self.0.is_empty() { Mechanism::None } else { Mechanism::SharedSecret }
    }

    /// One proof for each secret.
    pub(crate) fn prove_all(&self, side: Side, transcript: &Transcript) -> Vec<Proof> {
        self.0.iter().map(|secret| prove(secret, side, transcript)).collect()
    }

    /// The secret that one of `proofs` was made with.
    pub(crate) fn recognise(&self, side: Side, transcript: &Transcript, proofs: &[Proof]) -> Option<&Secret> {
        let is_known = |secret: &&Secret| proofs.iter().any(|proof| verify(secret, side, transcript, proof));
        self.0.iter().find(is_known)
    }
}

/// Who proves: a proof of one end is none of the other's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Dialler,
    Acceptor,
}

/// What both ends of a connection said before the proofs.
#[derive(Clone, Debug)]
pub(crate) struct Transcript(Vec<u8>);

impl Transcript {
    /// `exporter` is the value from the TLS session, if there is one.
    pub(crate) fn new(hello: &Hello, ack: &HelloAck, exporter: Option<&[u8]>) -> Self {
        let mut text = Vec::with_capacity(512);
        for number in [hello.version_min, hello.version_max, hello.role as u32, hello.mechanism as u32] {
            text.extend(number.to_be_bytes());
        }
        text.extend(hello.features.to_be_bytes());
        // Its own may be unknown to the dialler; then it joins the acceptor's.
        put_bytes(&mut text, &hello.cluster_id.map(|id| id.0.to_be_bytes()).unwrap_or_default());
        put_replica(&mut text, &hello.replica);
        text.extend(hello.boot.0.to_be_bytes());
        put_bytes(&mut text, hello.software.as_bytes());
        text.extend(hello.nonce);

        text.extend(ack.version.to_be_bytes());
        text.extend(ack.features.to_be_bytes());
        text.extend(ack.cluster_id.0.to_be_bytes());
        put_replica(&mut text, &ack.replica);
        text.extend(ack.boot.0.to_be_bytes());
        text.extend(ack.epoch.0.to_be_bytes());
        put_bytes(&mut text, ack.software.as_bytes());
        text.extend(ack.nonce);

        text.push(exporter.is_some().into());
        put_bytes(&mut text, exporter.unwrap_or_default());
        Self(text)
    }
}

fn put_replica(text: &mut Vec<u8>, replica: &ReplicaId) {
    put_bytes(text, replica.node.0.as_bytes());
    text.extend(replica.store.0.to_be_bytes());
}

/// With its length, so that no two transcripts are the same bytes.
fn put_bytes(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend((bytes.len() as u64).to_be_bytes());
    text.extend(bytes);
}

fn mac(secret: &Secret, side: Side, transcript: &Transcript) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes a key of any length");
    mac.update(DOMAIN);
    mac.update(match side {
        Side::Dialler => b"\0D",
        Side::Acceptor => b"\0A",
    });
    mac.update(&transcript.0);
    mac
}

pub(crate) fn prove(secret: &Secret, side: Side, transcript: &Transcript) -> Proof {
    mac(secret, side, transcript).finalize().into_bytes().into()
}

/// In constant time.
pub(crate) fn verify(secret: &Secret, side: Side, transcript: &Transcript, proof: &Proof) -> bool {
    mac(secret, side, transcript).verify_slice(proof).is_ok()
}
