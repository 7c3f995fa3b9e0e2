//! The whole: nodes, what happens to them, and the checks after each step.

use kahawai_testkit::{MemoryFiles, Random};

use crate::check::{self, Counts, live};
use crate::clients::ClientEvent;
use crate::ctx::{Ctx, Shape, name};
use crate::event::{ConnEvent, Event, NodeEvent};
use crate::faults;
use crate::harm;
use crate::net::{Arrival, ConnId, EndPoint, Side};
use crate::node::{Node, Process};
use crate::operator;
use crate::options::{Mutation, SimOptions};
use crate::plan::{self, Plan};
use crate::trace::WORLD;
use crate::visitors::{ToNode, Visitors};
use crate::wire::ClientId;
use crate::{Micros, Violation};

const MS: Micros = 1_000;
/// How often the election service looks at its sessions.
const SERVICE: Micros = 10 * MS;
/// How often everything is looked at.
const AUDIT: Micros = 500 * MS;
/// After the faults, the cluster has so long to be well.
const PATIENCE: Micros = 180_000 * MS;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The same for the same seed, on every machine.
    pub hash: u64,
    /// Events.
    pub steps: u64,
    /// Of the world's time.
    pub took: Micros,
    /// What happened.
    pub counts: Counts,
    /// What must never be, if it was.
    pub violation: Option<Violation>,
    /// What happened, as text, if it was asked for.
    pub trace: Vec<String>,
}

pub(crate) struct World {
    pub(crate) ctx: Ctx,
    pub(crate) nodes: Vec<Node>,
    options: SimOptions,
    arrivals: Vec<Arrival>,
    steps: u64,
    /// No fault strikes any more.
    pub(crate) is_calm: bool,
    pub(crate) visitors: Visitors,
    fault_us: Micros,
}

/// How the world of a seed is.
fn shape(options: &SimOptions, random: &mut Random) -> Shape {
    let mut between = |least: i64, most: i64| least + random.below((most - least + 1) as u64) as i64;
    let replication = kahawai_replication::Timing {
        heartbeat_ms: between(100, 500),
        dead_ms: between(700, 3_000),
        reconnect_ms: between(150, 1_000),
        takeover_grace_ms: between(50, 200),
        evict_ms: between(500, 4_000),
        stable_ms: between(200, 3_000),
        backoff_ms_max: between(2_000, 10_000),
        stream_lag_bytes_max: between(4, 64) as u64 * 1024,
        admission_lag_bytes_max: between(4, 64) as u64 * 1024,
        in_sync_lag_bytes_max: between(16, 128) as u64 * 1024,
        file_bytes_max: 0,
    };
    let election = kahawai_election::Timing {
        rank_step_ms: between(20, 150),
        empty_store_delay_ms: between(200, 1_500),
        switch_ms: between(300, 2_000),
        retry_ms: between(50, 200),
        publish_ms: between(200, 2_000),
        recover_ms: between(1_500, 20_000),
        hold_back_ms: between(100, 2_000),
    };
    let file_bytes_max = between(2, 16) as u32 * 1024;
    Shape {
        nodes: options.nodes,
        minimum_replicas: options.minimum_replicas,
        session_ms: between(800, 4_000),
        replication: kahawai_replication::Timing { file_bytes_max, ..replication },
        election,
        file_bytes_max,
        batch_bytes_max: between(512, 4_096) as u32,
        ring_bytes_max: between(512, 16_384) as usize,
        checkpoint_ms: between(300, 5_000) as u64,
        replica_checkpoint_ms: 0,
        collect_ms: between(500, 6_000) as u64,
        upkeep_us: 250 * MS,
        mutation: options.mutation,
    }
}

impl World {
    pub(crate) fn new(options: SimOptions) -> Self {
        let mut random = Random::new(options.seed ^ 0x5eed_5eed);
        let mut shape = shape(&options, &mut random);
        let mut plan = Plan::new(options.seed, options.faults);
        plan.bend(&mut shape);
        let mut ctx = Ctx::new(options.seed, shape, plan, options.verbose);
        let nodes = (0..options.nodes)
            .map(|index| Node {
                index,
                disk: MemoryFiles::new(),
                life: 0,
                process: None,
                paused_until: 0,
                stays_away: false,
            })
            .collect();
        for node in 0..options.nodes {
            let at = random.below(100 * MS) + ctx.plan.late_us(node, options.nodes);
            ctx.at(at, Event::Start { node, life: 0 });
        }
        ctx.at(0, Event::Service);
        ctx.at(AUDIT, Event::Audit);
        let workload = crate::clients::Shape {
            pause_us: 4 * MS + random.below(40 * MS),
            patience_us: 1_000 * MS + random.below(4_000 * MS),
            backoff_us: 20 * MS + random.below(300 * MS),
            rarely: 20 + random.below(200),
            ..crate::clients::Shape::SMALL
        };
        let mut visitors = Visitors::new(random.next_u64(), options.nodes, workload);
        visitors.begin(&mut ctx);
        // What happens once waits for a cluster that is well.
        let fault_us = (30 * MS + random.below(1_500 * MS)) * if ctx.plan.harm.is_some() { 3 } else { 1 };
        ctx.at(500 * MS, Event::Fault);
        if ctx.plan.harm.is_some() {
            let at = 1_500 * MS + ctx.plan.random.below(6_000 * MS);
            ctx.at(at, Event::Harm);
        }
        if ctx.plan.operator {
            ctx.at(1_000 * MS, Event::Operator);
        }
        let world =
            Self { ctx, nodes, options, arrivals: Vec::new(), steps: 0, is_calm: false, visitors, fault_us };
        if world.ctx.mutated(Mutation::AckBeforeFlush) {
            world.nodes.iter().for_each(|node| node.disk.lie());
        }
        world
    }

    /// Runs all of it.
    pub(crate) fn run(mut self) -> Outcome {
        // A panic of the product is a finding, and the trace up to it is wanted.
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run_through()));
        if let Err(panic) = ran {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
            self.ctx.violate(format!("PANIC: {text}"));
        }
        Outcome {
            hash: self.ctx.trace.hash(),
            steps: self.steps,
            took: self.ctx.now,
            counts: self.ctx.oracle.counts,
            violation: self.ctx.violation.take(),
            trace: self.ctx.trace.take(),
        }
    }

    fn run_through(&mut self) {
        while self.steps < self.options.steps && self.ctx.violation.is_none() && self.step() {}
        if self.ctx.violation.is_none() {
            self.calm_down();
        }
    }

    /// The faults stop; then the cluster has to become well.
    fn calm_down(&mut self) {
        self.is_calm = true;
        self.ctx.plan.is_over = true;
        self.visitors.clients.quiesce();
        faults::mend_all(self);
        harm::mend(self);
        self.ctx.say(WORLD, || "the faults stop".to_owned());
        let until = self.ctx.now + PATIENCE;
        let mut look_at = self.ctx.now;
        loop {
            if self.ctx.violation.is_some() || !self.step() {
                return;
            }
            if self.ctx.now < look_at {
                continue;
            }
            look_at = self.ctx.now + 50 * MS;
            match live::missing(&self.ctx, &self.nodes) {
                None if self.visitors.clients.is_drained() => break,
                None if self.ctx.oracle.has_lost && self.ctx.now + PATIENCE / 2 >= until => break,
                None if self.ctx.now >= until => {
                    let text = match self.visitors.clients.history().check() {
                        Err(Violation(text)) => text,
                        Ok(()) => "L1: clients are not done".to_owned(),
                    };
                    return self.ctx.violate(text);
                }
                None => {}
                Some(missing) if self.ctx.now >= until => return self.ctx.violate(missing),
                Some(_) => {}
            }
        }
        check::full(&mut self.ctx, &self.nodes);
        live::converged(&mut self.ctx, &self.nodes);
        if let Err(Violation(text)) = self.visitors.clients.history().check()
            && !self.ctx.oracle.has_lost
        {
            self.ctx.violate(text);
        }
    }

    /// One event; `false` = nothing will ever happen again.
    pub(crate) fn step(&mut self) -> bool {
        let Some((at, event)) = self.ctx.queue.pop() else { return false };
        self.ctx.now = at;
        self.steps += 1;
        self.ctx.trace.mix(at);
        self.happen(event);
        if !self.ctx.answers.is_empty() {
            let mut answers = std::mem::take(&mut self.ctx.answers);
            self.visitors.ship(&mut self.ctx, &mut answers);
            self.ctx.answers = answers;
        }
        if self.ctx.service_changed() {
            for node in &mut self.nodes {
                if let Some(process) = &mut node.process {
                    process.news_later(&mut self.ctx);
                }
            }
        }
        check::step(&mut self.ctx, &self.nodes);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Node { node, life, what } => self.node_event(node, life, what),
            Event::Start { node, life } => self.start(node, life),
            Event::Wire { conn, to } => self.wire(conn, to),
            Event::Dial { conn } => self.dialled(conn),
            Event::Service => {
                let ms = (self.ctx.now / MS) as i64 - self.ctx.hub.now();
                self.ctx.hub.advance(ms);
                self.ctx.at(SERVICE, Event::Service);
            }
            Event::Fault => {
                if !self.is_calm {
                    faults::strike(self);
                    let wait = 1 + self.ctx.random.below(self.fault_us * 2);
                    self.ctx.at(wait, Event::Fault);
                }
            }
            Event::Operator => operator::act(self),
            Event::Harm => harm::act(self),
            Event::Ambush(node) => plan::ambush(self, node),
            Event::Heal(healing) => faults::heal(self, healing),
            Event::Wake { client } => self.visitors.step(&mut self.ctx, client, ClientEvent::Wake),
            Event::ToClient { client, line, what } => {
                self.visitors.arrived(&mut self.ctx, client, line, *what);
            }
            Event::ToNode { node, client, line, what } => self.client_says(node, client, line, what),
            Event::Audit => {
                check::full(&mut self.ctx, &self.nodes);
                check::i24::look(&mut self.ctx, &self.nodes);
                check::l03::look(&mut self.ctx, &self.nodes);
                self.look_at_history();
                self.ctx.at(AUDIT, Event::Audit);
            }
        }
    }

    fn node_event(&mut self, index: usize, life: u32, what: NodeEvent) {
        let Some(node) = self.nodes.get_mut(index).filter(|node| node.life == life) else { return };
        if node.paused_until > self.ctx.now {
            return self.ctx.queue.push(node.paused_until, Event::Node { node: index, life, what });
        }
        let Some(process) = &mut node.process else { return };
        self.ctx.trace.mix(index as u64);
        process.event(&mut self.ctx, what);
        self.after(index);
    }

    /// A process that wants to end does.
    fn after(&mut self, index: usize) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        let Some(process) = &mut node.process else { return };
        if process.exits.is_none() {
            return;
        }
        process.dismiss_all(&mut self.ctx);
        process.leave(&mut self.ctx);
        let end = process.point();
        node.process = None;
        node.disk = node.disk.kill();
        node.life += 1;
        let ctx = &mut self.ctx;
        ctx.net.ended(ctx.now, &mut ctx.queue, &mut ctx.random, end, false);
        self.start_later(index);
    }

    /// Whoever looks after the machine starts the process again.
    pub(crate) fn start_later(&mut self, index: usize) {
        let life = self.nodes.get(index).map_or(0, |node| node.life);
        let most = if self.ctx.random.chance(4) { 3_000 * MS } else { 200 * MS };
        let wait = 20 * MS + self.ctx.random.below(most);
        self.ctx.at(wait, Event::Start { node: index, life });
    }

    /// A node that does not run starts after so long, and not before.
    pub(crate) fn stay_down(&mut self, index: usize, wait: Micros) {
        let Some(node) = self.nodes.get_mut(index).filter(|node| node.process.is_none()) else { return };
        node.life += 1;
        let life = node.life;
        self.ctx.at(wait, Event::Start { node: index, life });
    }

    fn start(&mut self, index: usize, life: u32) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.life != life || node.process.is_some() || node.stays_away {
            return;
        }
        let ctx = &mut self.ctx;
        if ctx.mutated(Mutation::AckBeforeFlush) {
            node.disk.lie();
        }
        ctx.net.returned(ctx.now, &mut ctx.queue, &mut ctx.random, index);
        match Process::start(ctx, index, life, node.disk.clone()) {
            Ok(process) => {
                harm::started(ctx, index);
                ctx.note(index, "starts", life.into(), process.identity.promised_epoch.0);
                node.process = Some(process);
            }
            Err(problem) => {
                check::cannot_open(ctx, index, &problem);
                ctx.say(index, || format!("cannot start: {problem}"));
                node.disk = node.disk.kill();
                node.life += 1;
                self.start_later(index);
            }
        }
    }

    pub(crate) fn faults(&self) -> crate::options::Faults {
        self.options.faults
    }

    /// The process is killed, or the machine loses power.
    pub(crate) fn kill(&mut self, index: usize, power: bool) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        let ctx = &mut self.ctx;
        ctx.note(index, if power { "loses power" } else { "is killed" }, node.life.into(), 0);
        if let Some(process) = &mut node.process
            && node.paused_until <= ctx.now
        {
            ctx.oracle.is_dying = true;
            process.before_death(ctx);
            ctx.oracle.is_dying = false;
        }
        if !power && let Some(process) = &mut node.process {
            process.dismiss_all(ctx);
        }
        let end = EndPoint { node: index, life: node.life };
        node.disk = if power { node.disk.crash(ctx.random.next_u64()) } else { node.disk.kill() };
        node.process = None;
        node.life += 1;
        node.paused_until = 0;
        ctx.hub.heal(&name(index));
        ctx.net.ended(ctx.now, &mut ctx.queue, &mut ctx.random, end, power);
        self.start_later(index);
    }

    fn wire(&mut self, conn: ConnId, to: Side) {
        let Some((dialler, acceptor)) = self.ctx.net.ends(conn) else { return };
        let end = if to == Side::Dialler { dialler } else { acceptor };
        let Some(node) = self.nodes.get_mut(end.node) else { return };
        let ctx = &mut self.ctx;
        if node.life == end.life && node.process.is_some() && node.paused_until > ctx.now {
            return ctx.queue.push(node.paused_until, Event::Wire { conn, to });
        }
        let mut arrivals = std::mem::take(&mut self.arrivals);
        ctx.net.arrivals(ctx.now, &mut ctx.queue, conn, to, &mut arrivals);
        let mut is_over = false;
        for arrival in arrivals.drain(..) {
            is_over |= matches!(arrival, Arrival::Closed);
            if node.life == end.life
                && let Some(process) = &mut node.process
                && process.exits.is_none()
            {
                process.arrived(ctx, conn, arrival);
            }
        }
        self.arrivals = arrivals;
        if is_over && node.life != end.life {
            ctx.net.forget(conn);
        }
        self.after(end.node);
    }

    fn dialled(&mut self, conn: ConnId) {
        let Some((dialler, acceptor)) = self.ctx.net.ends(conn) else { return };
        let (from, to) = (dialler.node, acceptor.node);
        let ctx = &mut self.ctx;
        if ctx.net.is_cut(from, to) || ctx.net.is_cut(to, from) {
            return ctx.net.forget(conn);
        }
        let delay = 30 + ctx.random.below(300);
        let what = match self.nodes.get_mut(to).and_then(|node| node.process.as_mut()) {
            Some(process) => {
                ctx.net.accepted(conn, process.life);
                process.accept(ctx, conn);
                ConnEvent::Connected
            }
            None => {
                ctx.net.forget(conn);
                ConnEvent::Failed
            }
        };
        let what = NodeEvent::Conn { conn, what };
        ctx.at(delay, Event::Node { node: from, life: dialler.life, what });
    }

    /// What clients have seen so far.
    fn look_at_history(&mut self) {
        // A loss was declared, and nobody wrote down what belongs to it.
        if self.ctx.oracle.has_lost {
            return;
        }
        if let Some(Violation(text)) = self.visitors.clients.history().violation().cloned() {
            self.ctx.violate(text);
        }
    }

    fn client_says(&mut self, index: usize, client: ClientId, line: u32, what: Box<ToNode>) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.process.is_some() && node.paused_until > self.ctx.now {
            return self.ctx.queue.push(node.paused_until, Event::ToNode { node: index, client, line, what });
        }
        let dials = matches!(*what, ToNode::Dial);
        let is_taken = match &mut node.process {
            Some(process) if process.exits.is_none() => process.client(&mut self.ctx, client, line, *what),
            _ => false,
        };
        if dials {
            let event = if is_taken { ClientEvent::Connected } else { ClientEvent::Refused };
            self.visitors.answer(&mut self.ctx, client, line, event);
        }
        self.after(index);
    }
}
