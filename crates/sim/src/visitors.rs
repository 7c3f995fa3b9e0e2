//! Clients' connections: first in, first out in both directions, with delay; they break without notice, and what is lost is lost
//! from some point on.

use crate::Micros;
use crate::clients::{ClientEffect, ClientEvent, Clients, Shape};
use crate::ctx::Ctx;
use crate::event::Event;
use crate::wire::{Answer, Ask, ClientId};

/// One connection of a client, or its attempt to have one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    /// Never used twice.
    pub(crate) number: u32,
    pub(crate) node: usize,
    /// The last that is under way, in either direction.
    last_in: Micros,
    last_out: Micros,
}

/// What is under way to a node.
pub(crate) enum ToNode {
    Dial,
    Ask(Ask),
    Gone,
}

/// All clients with their connections.
pub(crate) struct Visitors {
    pub(crate) clients: Clients,
    lines: Vec<Option<Line>>,
    last: u32,
    effects: Vec<ClientEffect>,
}

impl Visitors {
    pub(crate) fn new(seed: u64, nodes: usize, shape: Shape) -> Self {
        let clients = Clients::new(seed, nodes, shape);
        let lines = vec![None; clients.count() as usize];
        Self { clients, lines, last: 0, effects: Vec::new() }
    }

    pub(crate) fn begin(&mut self, ctx: &mut Ctx) {
        let mut effects = std::mem::take(&mut self.effects);
        self.clients.begin(ctx.now, &mut effects);
        self.carry_out(ctx, effects);
    }

    fn line(&mut self, client: ClientId) -> Option<&mut Line> {
        self.lines.get_mut(client.0 as usize)?.as_mut()
    }

    fn delay(ctx: &mut Ctx) -> Micros {
        40 + ctx.random.below(400)
    }

    /// Something happened to a client.
    pub(crate) fn step(&mut self, ctx: &mut Ctx, client: ClientId, event: ClientEvent) {
        let mut effects = std::mem::take(&mut self.effects);
        self.clients.step(ctx.now, client, event, &mut effects);
        self.carry_out(ctx, effects);
    }

    fn carry_out(&mut self, ctx: &mut Ctx, mut effects: Vec<ClientEffect>) {
        for effect in effects.drain(..) {
            match effect {
                ClientEffect::Connect { client, node } => {
                    self.last += 1;
                    let line = Line { number: self.last, node, last_in: 0, last_out: 0 };
                    if let Some(place) = self.lines.get_mut(client.0 as usize) {
                        *place = Some(line);
                    }
                    self.send(ctx, client, ToNode::Dial);
                }
                ClientEffect::Ask(client, ask) => self.send(ctx, client, ToNode::Ask(ask)),
                ClientEffect::Close(client) => {
                    self.send(ctx, client, ToNode::Gone);
                    if let Some(place) = self.lines.get_mut(client.0 as usize) {
                        *place = None;
                    }
                }
                ClientEffect::WakeAt(client, at) => {
                    ctx.queue.push(at.max(ctx.now), Event::Wake { client });
                }
            }
        }
        self.effects = effects;
    }

    fn send(&mut self, ctx: &mut Ctx, client: ClientId, what: ToNode) {
        let at = ctx.now + Self::delay(ctx);
        let Some(line) = self.line(client) else { return };
        line.last_out = line.last_out.max(at);
        let (at, node, number) = (line.last_out, line.node, line.number);
        ctx.queue.push(at, Event::ToNode { node, client, line: number, what: Box::new(what) });
    }

    /// A node answers on a connection, if it still is the client's.
    pub(crate) fn answer(&mut self, ctx: &mut Ctx, client: ClientId, number: u32, what: ClientEvent) {
        let at = ctx.now + Self::delay(ctx);
        let Some(line) = self.line(client).filter(|line| line.number == number) else { return };
        line.last_in = line.last_in.max(at);
        let at = line.last_in;
        ctx.queue.push(at, Event::ToClient { client, line: number, what: Box::new(what) });
    }

    /// Something has arrived at a client.
    pub(crate) fn arrived(&mut self, ctx: &mut Ctx, client: ClientId, number: u32, what: ClientEvent) {
        if self.line(client).is_none_or(|line| line.number != number) {
            return;
        }
        if matches!(what, ClientEvent::Refused | ClientEvent::Closed)
            && let Some(place) = self.lines.get_mut(client.0 as usize)
        {
            *place = None;
        }
        self.step(ctx, client, what);
    }

    /// A connection breaks: what is under way is lost, the client hears of it, now or when its patience ends; the node too.
    pub(crate) fn break_one(&mut self, ctx: &mut Ctx) -> bool {
        let client = ClientId(ctx.random.below(self.lines.len() as u64) as u32);
        let Some(line) = self.line(client) else { return false };
        // Nothing that is under way is this line's any more.
        let old = line.number;
        let node = line.node;
        let deaf = ctx.random.chance(3);
        self.last += 1;
        let number = self.last;
        if let Some(line) = self.line(client) {
            line.number = number;
        }
        let wait = ctx.random.below(2_000_000);
        let gone = Event::ToNode { node, client, line: old, what: Box::new(ToNode::Gone) };
        ctx.queue.push(ctx.now + wait, gone);
        if !deaf {
            self.answer(ctx, client, number, ClientEvent::Closed);
        }
        true
    }

    /// Answers of a node, in order.
    pub(crate) fn ship(&mut self, ctx: &mut Ctx, answers: &mut Vec<(ClientId, u32, Option<Answer>)>) {
        for (client, number, answer) in answers.drain(..) {
            let what = answer.map_or(ClientEvent::Closed, ClientEvent::Answer);
            self.answer(ctx, client, number, what);
        }
    }
}
