//! A planned change of the primary: what `hand_over` in `node/src/cluster/mod.rs` does.

use std::collections::VecDeque;

use kahawai_election::Request;
use kahawai_message::storage::Storage;
use kahawai_types::{Millis, NodeId};

use super::{Process, Role};
use crate::ctx::Ctx;
use crate::visitors::ToNode;
use crate::wire::ClientId;

/// So long it is waited for what was appended to be confirmed, milliseconds.
const SETTLE_MS: Millis = 5_000;

/// A primary that is about to leave.
pub(super) struct Handover {
    successor: Option<NodeId>,
    until: Millis,
    /// What was appended when we looked last.
    end: kahawai_types::Lsn,
    /// The request, once it is made.
    request: Option<u64>,
    /// What clients say meanwhile, in order: nobody reads it yet.
    unread: VecDeque<(ClientId, u32, ToNode)>,
}

impl Process {
    /// An operator wants another primary; `false` = nobody could take over.
    pub(crate) fn hand_over(&mut self, ctx: &mut Ctx, successor: Option<NodeId>) -> bool {
        let now = ctx.local_ms(self.index);
        let Some(leading) = self.leading() else { return false };
        let is_able = |replica: &kahawai_replication::ReplicaStatus| {
            let is_wanted = successor.as_ref().is_none_or(|node| replica.replica.node == *node);
            is_wanted && replica.in_sync && replica.connected.is_some()
        };
        if leading.handover.is_some() || !leading.primary.status().replicas.iter().any(is_able) {
            return false;
        }
        let end = leading.store.appended_end();
        let unread = VecDeque::new();
        leading.handover = Some(Handover { successor, until: now + SETTLE_MS, end, request: None, unread });
        ctx.note(self.index, "is to hand over", 0, 0);
        true
    }

    /// What a client says while nobody reads it is kept; `None` = it was.
    pub(super) fn unless_handing_over(
        &mut self,
        client: ClientId,
        line: u32,
        what: ToNode,
    ) -> Option<ToNode> {
        let handover = self.leading().and_then(|leading| leading.handover.as_mut());
        match (handover, what) {
            (Some(handover), what @ (ToNode::Ask(_) | ToNode::Gone)) => {
                handover.unread.push_back((client, line, what));
                None
            }
            (_, what) => Some(what),
        }
    }

    /// All that was appended is confirmed, or has not been for a while: the grant goes back.
    pub(super) fn settle(&mut self, ctx: &mut Ctx) {
        let now = ctx.local_ms(self.index);
        let Some(leading) = self.leading() else { return };
        let (commit, appended) = (leading.committed, leading.store.appended_end());
        let Some(handover) = leading.handover.as_mut().filter(|handover| handover.request.is_none()) else {
            return;
        };
        if now < handover.until && (commit < handover.end || appended != handover.end) {
            handover.end = if commit < handover.end { handover.end } else { appended };
            return;
        }
        let successor = handover.successor.clone();
        let id = self.request(ctx, Request::StepDown { successor });
        if let Some(handover) = self.leading().and_then(|leading| leading.handover.as_mut()) {
            handover.request = Some(id);
        }
    }

    /// The answer to the request, if it is that; refused, everything goes on.
    pub(super) fn handed_over(&mut self, ctx: &mut Ctx, request: u64, applied: bool) -> bool {
        let Some(leading) = self.leading() else { return false };
        if leading.handover.as_ref().is_none_or(|handover| handover.request != Some(request)) {
            return false;
        }
        if !applied && let Some(handover) = leading.handover.take() {
            ctx.note(self.index, "does not hand over", 0, 0);
            for (client, line, what) in handover.unread {
                if matches!(self.role, Role::Leading(_)) {
                    self.client(ctx, client, line, what);
                }
            }
        }
        true
    }
}
