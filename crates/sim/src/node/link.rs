//! The ends of connections: handshake, frames, whose they are. What `node/src/cluster/net.rs` does.

use bytes::BytesMut;
use kahawai_kdbr::{
    BODY_BYTES_MAX, Decoder, ErrorCode, ErrorFrame, Frame, HANDSHAKE_TIMEOUT_MS, Handshake, Local, Peer,
    Progress, Role as Purpose, Secrets, VERSIONS, put_preamble, take_preamble,
};
use kahawai_replication::SourceEvent;
use kahawai_types::{ClusterId, Epoch};

use super::copying::{Over, Session};
use super::{MS, Process, Role};
use crate::ctx::{Ctx, address};
use crate::event::ConnEvent;
use crate::net::{Arrival, ConnId, Side};

/// How long a connection may take to be made.
const DIAL: u64 = 3_000 * MS;

/// One end of a connection.
pub(crate) struct End {
    side: Side,
    decoder: Decoder,
    input: BytesMut,
    stage: Stage,
}

enum Stage {
    /// It is being made.
    Dialling {
        local: Box<Local>,
        purpose: Purpose,
    },
    Shaking {
        handshake: Box<Handshake>,
        purpose: Purpose,
    },
    /// The role that this node had when the peer connected, if it led.
    Accepting {
        handshake: Option<Box<Handshake>>,
        purpose: Purpose,
        leads: Option<u32>,
    },
    Sink,
    Source,
    TransferSink,
    TransferSource,
}

impl Process {
    fn credentials(
        &self,
        ctx: &mut Ctx,
        role: Purpose,
        cluster_id: Option<ClusterId>,
        epoch: Epoch,
    ) -> Local {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&ctx.random.next_u64().to_be_bytes());
        Local {
            role,
            versions: VERSIONS,
            features: 0,
            cluster_id,
            replica: self.replica(),
            boot: self.identity.boot_id,
            epoch,
            software: "kahawai simulated".to_owned(),
            nonce,
            exporter: None,
        }
    }

    /// Connects to a peer. Who has nothing yet takes the cluster that it finds.
    pub(super) fn dial(&mut self, ctx: &mut Ctx, to: usize, purpose: Purpose, is_empty: bool) -> ConnId {
        let conn = ctx.dial(self.point(), to);
        let known = self.identity.has_joined() || !is_empty;
        let cluster_id = known.then_some(self.identity.cluster_id);
        let local = Box::new(self.credentials(ctx, purpose, cluster_id, Epoch(0)));
        let end = End {
            side: Side::Dialler,
            decoder: Decoder::new(BODY_BYTES_MAX),
            input: BytesMut::new(),
            stage: Stage::Dialling { local, purpose },
        };
        self.ends.insert(conn, end);
        self.conn_timeout(ctx, conn, DIAL);
        conn
    }

    /// A peer has connected.
    pub(crate) fn accept(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let leads = matches!(self.role, Role::Leading(_)).then_some(self.role_number);
        let end = End {
            side: Side::Acceptor,
            decoder: Decoder::new(BODY_BYTES_MAX),
            input: BytesMut::new(),
            stage: Stage::Accepting { handshake: None, purpose: Purpose::Stream, leads },
        };
        self.ends.insert(conn, end);
        self.conn_timeout(ctx, conn, HANDSHAKE_TIMEOUT_MS as u64 * MS);
    }

    pub(super) fn conn_event(&mut self, ctx: &mut Ctx, conn: ConnId, what: ConnEvent) {
        match what {
            ConnEvent::Connected => self.connected(ctx, conn),
            ConnEvent::Failed => self.conn_closed(ctx, conn),
            ConnEvent::Timeout => {
                let is_made = self.ends.get(&conn).is_none_or(|end| {
                    !matches!(
                        end.stage,
                        Stage::Dialling { .. } | Stage::Shaking { .. } | Stage::Accepting { .. }
                    )
                });
                if !is_made {
                    self.conn_closed(ctx, conn);
                }
            }
            ConnEvent::SourceLog => self.source_log(ctx, conn),
            ConnEvent::SourceTick => self.source_tick(ctx, conn),
            ConnEvent::Announce => self.announce(ctx, conn),
            ConnEvent::Source(event) => self.source_step(ctx, conn, *event),
            ConnEvent::Chain(at, chain) => self.source_chain(ctx, conn, at, chain),
            ConnEvent::Transfer => self.transfer_silent(ctx, conn),
        }
    }

    fn connected(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let Some(end) = self.ends.get_mut(&conn) else { return };
        let Stage::Dialling { local, purpose } = &end.stage else { return };
        let (local, purpose) = (local.clone(), *purpose);
        let mut first = Vec::new();
        let handshake = Box::new(Handshake::dialler(*local, Secrets::NONE, &mut first));
        end.stage = Stage::Shaking { handshake, purpose };
        let mut preamble = BytesMut::new();
        put_preamble(purpose, &mut preamble);
        ctx.send_bytes(conn, Side::Dialler, &preamble);
        for frame in first {
            ctx.send(conn, Side::Dialler, &frame);
        }
        self.conn_timeout(ctx, conn, HANDSHAKE_TIMEOUT_MS as u64 * MS);
    }

    /// Something has come out of a connection.
    pub(crate) fn arrived(&mut self, ctx: &mut Ctx, conn: ConnId, arrival: Arrival) {
        let bytes = match arrival {
            Arrival::Bytes(bytes) => bytes,
            Arrival::Closed => return self.conn_closed(ctx, conn),
        };
        let Some(end) = self.ends.get_mut(&conn) else { return };
        if end.input.is_empty()
            && let Ok(whole) = bytes.clone().try_into_mut()
        {
            end.input = whole;
        } else {
            end.input.extend_from_slice(&bytes);
        }
        loop {
            let Some(end) = self.ends.get_mut(&conn) else { return };
            if let Stage::Accepting { handshake: None, .. } = &end.stage {
                match take_preamble(&mut end.input) {
                    Ok(Some(role)) => self.greeted(ctx, conn, role),
                    Ok(None) => return,
                    Err(problem) => {
                        ctx.violate(format!("WIRE: {problem}"));
                        return self.conn_closed(ctx, conn);
                    }
                }
                continue;
            }
            match end.decoder.decode(&mut end.input) {
                Ok(Some(frame)) => self.frame(ctx, conn, frame),
                Ok(None) => return,
                Err(problem) => {
                    // Nothing on our network changes bytes.
                    ctx.violate(format!("WIRE: {problem}"));
                    return self.conn_closed(ctx, conn);
                }
            }
        }
    }

    fn greeted(&mut self, ctx: &mut Ctx, conn: ConnId, role: Purpose) {
        let epoch = match &self.role {
            Role::Leading(leading) => leading.epoch,
            _ => self.identity.promised_epoch,
        };
        let local = self.credentials(ctx, role, Some(self.identity.cluster_id), epoch);
        let Some(end) = self.ends.get_mut(&conn) else { return };
        if let Stage::Accepting { handshake, purpose, .. } = &mut end.stage {
            *handshake = Some(Box::new(Handshake::acceptor(local, Secrets::NONE)));
            *purpose = role;
        }
    }

    fn frame(&mut self, ctx: &mut Ctx, conn: ConnId, frame: Frame) {
        let Some(end) = self.ends.get_mut(&conn) else { return };
        let side = end.side;
        let mut out = Vec::new();
        let progress = match &mut end.stage {
            Stage::Sink => return self.sink_frame(ctx, frame),
            Stage::Source => return self.source_frame(ctx, conn, frame),
            Stage::TransferSink => return self.fetch_frame(ctx, conn, frame),
            Stage::TransferSource => return self.transfer_frame(ctx, conn, frame),
            Stage::Shaking { handshake, .. } | Stage::Accepting { handshake: Some(handshake), .. } => {
                handshake.step(frame, &mut out)
            }
            Stage::Dialling { .. } | Stage::Accepting { handshake: None, .. } => return,
        };
        for frame in &out {
            ctx.send(conn, side, frame);
        }
        match progress {
            Progress::Continue => {}
            Progress::Done(peer) => {
                end.decoder.authenticated();
                self.shaken(ctx, conn, peer);
            }
            Progress::Failed(error) | Progress::Refused(error) => {
                ctx.say(self.index, || format!("handshake: {}", error.text));
                self.conn_closed(ctx, conn);
            }
        }
    }

    /// Both ends know each other.
    fn shaken(&mut self, ctx: &mut Ctx, conn: ConnId, peer: Peer) {
        let Some(end) = self.ends.get_mut(&conn) else { return };
        match &end.stage {
            Stage::Shaking { purpose: Purpose::Stream, .. } => {
                end.stage = Stage::Sink;
                self.session_connected(ctx, conn, &peer);
            }
            Stage::Shaking { purpose: Purpose::Transfer, .. } => {
                end.stage = Stage::TransferSink;
                self.fetch_connected(ctx, conn);
            }
            Stage::Accepting { purpose, leads, .. } => {
                let (purpose, leads) = (*purpose, *leads);
                if leads.is_none() || leads != Some(self.role_number) {
                    let refusal = ErrorFrame::new(ErrorCode::NotMaster, "this node does not lead");
                    ctx.send(conn, Side::Acceptor, &Frame::Error(refusal));
                    return self.drop_conn(ctx, conn);
                }
                match purpose {
                    Purpose::Stream => {
                        end.stage = Stage::Source;
                        self.source_connected(ctx, conn, peer);
                    }
                    Purpose::Transfer => {
                        end.stage = Stage::TransferSource;
                        ctx.say(self.index, || format!("transfer connection of {}", address(0)));
                    }
                }
            }
            _ => {}
        }
    }

    /// Closes our end without a word.
    pub(super) fn drop_conn(&mut self, ctx: &mut Ctx, conn: ConnId) {
        if let Some(end) = self.ends.remove(&conn) {
            ctx.close(conn, end.side);
        }
    }

    /// The connection is gone, or does not get on.
    fn conn_closed(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let Some(end) = self.ends.remove(&conn) else { return };
        ctx.close(conn, end.side);
        match end.stage {
            Stage::Sink
            | Stage::Dialling { purpose: Purpose::Stream, .. }
            | Stage::Shaking { purpose: Purpose::Stream, .. } => {
                let ours = match &self.role {
                    Role::Following(following) => match &following.session {
                        Session::Dialling { conn: ours, .. } => *ours == conn,
                        Session::Live(sink) => sink.conn == conn,
                        _ => false,
                    },
                    _ => false,
                };
                if ours {
                    self.session_over(ctx, Over::Lost);
                }
            }
            Stage::Source => self.source_over(ctx, conn, false),
            Stage::TransferSink
            | Stage::Dialling { purpose: Purpose::Transfer, .. }
            | Stage::Shaking { purpose: Purpose::Transfer, .. } => self.fetch_again(ctx, conn),
            Stage::TransferSource | Stage::Accepting { .. } => {}
        }
    }

    /// Those who copy files from a reign that is over.
    pub(super) fn drop_transfers(&mut self, ctx: &mut Ctx) {
        let all: Vec<ConnId> = self
            .ends
            .iter()
            .filter(|(_, end)| matches!(end.stage, Stage::TransferSource))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in all {
            self.drop_conn(ctx, conn);
        }
    }

    /// For a session whose answer comes later.
    pub(super) fn answer_source(&self, ctx: &mut Ctx, conn: ConnId, event: SourceEvent) {
        let takes = ctx.flush_us(self.index) / 2;
        self.source_later(ctx, conn, takes, event);
    }
}
