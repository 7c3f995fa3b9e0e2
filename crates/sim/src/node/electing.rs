//! Between the elector and the election service: what `node/src/cluster/electing.rs` does in tasks.

use std::sync::Arc;
use std::task::{Context, Poll};

use kahawai_election::memory::MemoryProvider;
use kahawai_election::{
    BoxFuture, CasResult, Effect, Elector, Event as Told, Fence, Provider, ProviderError, Refusal, Request,
};
use kahawai_types::Millis;

use super::{Decision, MS, Process};
use crate::check;
use crate::ctx::{Ctx, name};
use crate::event::NodeEvent;
use crate::options::Mutation;
use crate::{harm, plan};

/// How often the elector looks at the time.
const TICK_MS: Millis = 50;
/// Without a connection an operation answers after this time.
const UNREACHABLE: u64 = 300 * MS;

type Campaign = (u64, BoxFuture<'static, Result<Fence, ProviderError>>);

pub(crate) struct Electing {
    elector: Elector,
    provider: Arc<MemoryProvider>,
    effects: Vec<Effect>,
    campaign: Option<Campaign>,
    /// A campaign begins after it, or it would be the one that is given up.
    is_resigning: bool,
    waiting: Option<u64>,
    is_scheduled: bool,
    /// Until when nobody else can lead, by the boot clock.
    pub(crate) lease_ms: Millis,
}

impl Electing {
    pub(crate) fn new(ctx: &mut Ctx, index: usize, elector: Elector) -> Self {
        let provider = Arc::new(ctx.hub.open(&name(index)));
        Self {
            elector,
            provider,
            effects: Vec::new(),
            campaign: None,
            is_resigning: false,
            waiting: None,
            is_scheduled: true,
            lease_ms: Millis::MIN,
        }
    }

    /// What the provider says of our grant, by this machine's clock: it knows when it renewed, and counts from there.
    fn deadline(&self, ctx: &Ctx, index: usize) -> Millis {
        let deadline = self.elector.grant().map_or(Millis::MIN, |grant| self.provider.deadline(grant));
        if deadline == Millis::MIN {
            return deadline;
        }
        let lasts = ctx.shape.session_ms * 99 / 100 - 5;
        let renewed_us = u64::try_from((deadline - lasts).max(0)).unwrap_or(0) * MS;
        ctx.clocks.get(index).map_or(0, |clock| clock.boot_ms(renewed_us)) + lasts
    }
}

fn poll<T>(ctx: &Ctx, future: &mut BoxFuture<'_, T>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(&ctx.waker)) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// What the service does at once.
fn now<T>(ctx: &Ctx, mut future: BoxFuture<'_, T>) -> Option<T> {
    poll(ctx, &mut future)
}

impl Process {
    /// Gives the elector one event.
    fn elect(&mut self, ctx: &mut Ctx, told: Told) {
        let mut effects = std::mem::take(&mut self.electing.effects);
        self.electing.elector.step(ctx.local_ms(self.index), told, &mut effects);
        self.electing.lease_ms = self.electing.deadline(ctx, self.index);
        for effect in effects.drain(..) {
            self.election_effect(ctx, effect);
        }
        self.electing.effects = effects;
    }

    fn election_effect(&mut self, ctx: &mut Ctx, effect: Effect) {
        match effect {
            Effect::Read | Effect::ReadPresence | Effect::Create { .. } | Effect::Cas { .. } => {
                let takes = ctx.service_us();
                self.tell_later(ctx, takes, NodeEvent::ServiceDo(Box::new(effect)));
            }
            Effect::Campaign { id } => {
                self.electing.campaign = None;
                if self.electing.is_resigning {
                    self.electing.waiting = Some(id);
                } else {
                    self.campaign(ctx, id);
                }
            }
            Effect::Resign => {
                self.electing.campaign = None;
                self.electing.waiting = None;
                self.electing.is_resigning = true;
                let takes = ctx.service_us();
                self.tell_later(ctx, takes, NodeEvent::ServiceDo(Box::new(Effect::Resign)));
            }
            Effect::Publish(presence) => self.electing.provider.publish(presence),
            Effect::Save(bytes) => {
                if let Err(problem) = kahawai_store::save_record(&self.files, &bytes) {
                    self.fail(ctx, format!("the record could not be kept: {problem}"));
                }
            }
            Effect::Lead { epoch, record, unclean } => {
                ctx.note(self.index, "elected in epoch, version", epoch.0, record.version);
                if harm::is_unnoticed(ctx, self.index) {
                    return self.exit(ctx, "somebody takes it away".to_owned());
                }
                check::i23::elected(ctx, self.index, &self.identity, &record);
                self.decided(ctx, Decision::Lead { epoch, record, unclean });
            }
            Effect::Follow { primary, epoch } => {
                ctx.note(self.index, "is to follow, epoch", epoch.0, 0);
                self.decided(ctx, Decision::Follow { primary });
            }
            Effect::StepDown(reason) => {
                ctx.say(self.index, || format!("is to step down: {reason}"));
                ctx.note(self.index, "is to step down", 0, 0);
                self.decided(ctx, Decision::StepDown);
            }
            Effect::Changed(record) => self.decided(ctx, Decision::Changed(record)),
            Effect::Answer { id, outcome } => {
                let stepped_down = matches!(outcome, Err(Refusal::SteppedDown));
                let hop = ctx.hop();
                let what = NodeEvent::Answered { request: id, applied: outcome.is_ok(), stepped_down };
                self.tell_later(ctx, hop, what);
            }
            Effect::Status(status) => ctx.say(self.index, || format!("election: {status}")),
        }
    }

    fn decided(&mut self, ctx: &mut Ctx, decision: Decision) {
        self.decisions.push_back(decision);
        self.decide_later(ctx);
    }

    /// Asks the elector for a change of the record; the answer comes under this number.
    pub(crate) fn request(&mut self, ctx: &mut Ctx, request: Request) -> u64 {
        ctx.requests += 1;
        let id = ctx.requests;
        self.tell(ctx, Told::Request { id, request });
        id
    }

    /// Whether an operator has taken that node out.
    pub(super) fn is_removed(&self, node: &kahawai_types::NodeId) -> bool {
        self.electing.elector.record().is_some_and(|record| record.removed.contains(node))
    }

    fn campaign(&mut self, ctx: &mut Ctx, id: u64) {
        let provider = Arc::clone(&self.electing.provider);
        let future: BoxFuture<'static, _> = Box::pin(async move { provider.campaign().await });
        self.electing.campaign = Some((id, future));
        self.news_later(ctx);
    }

    /// Something may have changed at the service.
    pub(crate) fn news_later(&mut self, ctx: &mut Ctx) {
        if !self.electing.is_scheduled {
            self.electing.is_scheduled = true;
            let takes = ctx.service_us();
            self.tell_later(ctx, takes, NodeEvent::ServiceNews);
        }
    }

    pub(super) fn service_event(&mut self, ctx: &mut Ctx, what: NodeEvent) {
        match what {
            NodeEvent::ElectTick => {
                self.tell_later(ctx, TICK_MS as u64 * MS, NodeEvent::ElectTick);
                let deadline = self.electing.deadline(ctx, self.index);
                self.elect(ctx, Told::Tick { deadline });
            }
            NodeEvent::ServiceNews => {
                self.electing.is_scheduled = false;
                let provider = Arc::clone(&self.electing.provider);
                while let Some(event) = now(ctx, provider.next_event()) {
                    ctx.say(self.index, || format!("service: {event:?}"));
                    self.elect(ctx, Told::Provider(event));
                }
                if let Some((id, campaign)) = &mut self.electing.campaign
                    && let Some(result) = poll(ctx, campaign)
                {
                    let id = *id;
                    self.electing.campaign = None;
                    self.elect(ctx, Told::Campaign { id, result });
                }
            }
            NodeEvent::ServiceDo(effect) => self.service_do(ctx, *effect),
            NodeEvent::Resigned => {
                self.electing.is_resigning = false;
                if let Some(id) = self.electing.waiting.take() {
                    self.campaign(ctx, id);
                }
            }
            NodeEvent::Tell(told) => self.elect(ctx, *told),
            _ => {}
        }
    }

    fn service_do(&mut self, ctx: &mut Ctx, effect: Effect) {
        let provider = Arc::clone(&self.electing.provider);
        let mut takes = ctx.service_us();
        let told = match effect {
            Effect::Read => now(ctx, provider.read()).map(Told::Record),
            Effect::ReadPresence => now(ctx, provider.presence()).map(Told::Presence),
            Effect::Create { op, record } => {
                now(ctx, provider.create(record)).map(|result| Told::Written { op, result })
            }
            Effect::Cas { op, expected, record, fence } => {
                let ambush = plan::change_arrives(ctx, self.index, &record);
                let result = now(ctx, provider.cas(expected, record, fence));
                if ambush {
                    plan::change_arrived(ctx, self.index);
                }
                if ctx.mutated(Mutation::UnknownIsFailed)
                    && let Some(CasResult::Unknown(_)) = result
                {
                    self.forget_proposals(ctx);
                }
                result.map(|result| Told::Written { op, result })
            }
            Effect::Resign => {
                let _ = now(ctx, provider.resign());
                return self.tell_later(ctx, takes, NodeEvent::Resigned);
            }
            _ => None,
        };
        let is_unreachable = matches!(
            &told,
            Some(
                Told::Record(Err(_))
                    | Told::Presence(Err(_))
                    | Told::Written { result: CasResult::Unknown(_), .. }
            )
        );
        if is_unreachable {
            takes += UNREACHABLE;
        }
        if let Some(told) = told {
            self.tell_later(ctx, takes, NodeEvent::Tell(Box::new(told)));
        }
    }

    /// Ends the session in good order.
    pub(crate) fn leave(&mut self, ctx: &mut Ctx) {
        let provider = Arc::clone(&self.electing.provider);
        self.electing.campaign = None;
        let _ = now(ctx, provider.close());
    }
}
