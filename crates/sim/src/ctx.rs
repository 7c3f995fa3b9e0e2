//! What nodes share: time, network, election service, chance; and the eyes of the checkers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use kahawai_election::memory::Hub;
use kahawai_kdbr::Frame;
use kahawai_replication::Timing;
use kahawai_testkit::Random;
use kahawai_types::{BootId, Millis, NodeId};

use bytes::BytesMut;

use crate::check::Oracle;
use crate::clock::NodeClock;
use crate::event::Event;
use crate::net::{Arrival, ConnId, EndPoint, Net, Side};
use crate::options::Mutation;
use crate::plan::Plan;
use crate::queue::Queue;
use crate::trace::Trace;
use crate::wire::{Answer, ClientId};
use crate::{Micros, Violation};

/// How this run's world is.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) minimum_replicas: u32,
    pub(crate) session_ms: Millis,
    pub(crate) replication: Timing,
    pub(crate) election: kahawai_election::Timing,
    pub(crate) file_bytes_max: u32,
    pub(crate) batch_bytes_max: u32,
    pub(crate) ring_bytes_max: usize,
    pub(crate) checkpoint_ms: u64,
    /// The same, for a replica.
    pub(crate) replica_checkpoint_ms: u64,
    pub(crate) collect_ms: u64,
    /// How often upkeep looks.
    pub(crate) upkeep_us: Micros,
    pub(crate) mutation: Option<Mutation>,
}

/// One machine's disk, from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskPace {
    /// Microseconds of a flush, at least and at most.
    pub(crate) flush: (Micros, Micros),
    /// Everything waits until then.
    pub(crate) hangs_until: Micros,
}

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// See the module.
pub(crate) struct Ctx {
    pub(crate) now: Micros,
    pub(crate) queue: Queue,
    pub(crate) random: Random,
    pub(crate) plan: Plan,
    pub(crate) net: Net,
    pub(crate) hub: Arc<Hub>,
    /// Microseconds of one way to the election service, at most.
    pub(crate) service_us_max: Micros,
    pub(crate) clocks: Vec<NodeClock>,
    pub(crate) disks: Vec<DiskPace>,
    pub(crate) shape: Shape,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
    /// Requests to electors so far.
    pub(crate) requests: u64,
    /// Reigns that began to serve.
    pub(crate) services: u64,
    /// What nodes say to clients, to be shipped; `None` = the connection is closed.
    pub(crate) answers: Vec<(ClientId, u32, Option<Answer>)>,
    /// Who runs on which node.
    pub(crate) boots: Vec<BootId>,
    bell: Arc<Bell>,
    pub(crate) waker: Waker,
    scratch: BytesMut,
}

impl Ctx {
    pub(crate) fn new(seed: u64, shape: Shape, plan: Plan, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let bell = Arc::new(Bell::default());
        let nodes = shape.nodes;
        let clocks = (0..nodes).map(|_| NodeClock::new(&mut random)).collect();
        let pace = DiskPace { flush: (100, 600 + random.below(2_000)), hangs_until: 0 };
        let mut net = Net::default();
        net.delay = (30, 100 + random.below(1_000));
        if random.chance(10) {
            net.delay.1 = 20_000;
        }
        Self {
            now: 0,
            queue: Queue::default(),
            net,
            hub: Hub::new(shape.session_ms),
            service_us_max: 1_000 + random.below(4_000),
            clocks,
            disks: vec![pace; nodes],
            oracle: Oracle::new(nodes),
            shape,
            random,
            plan,
            trace: Trace::new(verbose),
            violation: None,
            requests: 0,
            services: 0,
            answers: Vec::new(),
            boots: vec![BootId::default(); nodes],
            waker: Waker::from(Arc::clone(&bell)),
            bell,
            scratch: BytesMut::new(),
        }
    }

    /// The boot clock of a node, as machines take it.
    pub(crate) fn local_ms(&self, node: usize) -> Millis {
        self.clocks.get(node).map_or(0, |clock| clock.boot_ms(self.now))
    }

    pub(crate) fn wall_ms(&self, node: usize) -> Millis {
        self.clocks.get(node).map_or(0, |clock| clock.wall_ms(self.now))
    }

    pub(crate) fn mutated(&self, mutation: Mutation) -> bool {
        self.shape.mutation == Some(mutation)
    }

    /// From one task of a process to another.
    pub(crate) fn hop(&mut self) -> Micros {
        5 + self.random.below(60)
    }

    /// How long a flush takes that begins now.
    pub(crate) fn flush_us(&mut self, node: usize) -> Micros {
        let Some(disk) = self.disks.get(node).copied() else { return 0 };
        let (least, most) = disk.flush;
        let waits = disk.hangs_until.saturating_sub(self.now);
        waits + least + self.random.below(most - least + 1)
    }

    /// One way to the election service.
    pub(crate) fn service_us(&mut self) -> Micros {
        200 + self.random.below(self.service_us_max)
    }

    pub(crate) fn at(&mut self, delay: Micros, event: Event) {
        self.queue.push(self.now + delay, event);
    }

    pub(crate) fn send(&mut self, conn: ConnId, from: Side, frame: &Frame) {
        frame.encode(&mut self.scratch);
        let bytes = self.scratch.split().freeze();
        self.net.send(self.now, &mut self.queue, &mut self.random, conn, from, Arrival::Bytes(bytes));
    }

    pub(crate) fn send_bytes(&mut self, conn: ConnId, from: Side, bytes: &[u8]) {
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        self.net.send(self.now, &mut self.queue, &mut self.random, conn, from, Arrival::Bytes(bytes));
    }

    pub(crate) fn close(&mut self, conn: ConnId, from: Side) {
        self.net.send(self.now, &mut self.queue, &mut self.random, conn, from, Arrival::Closed);
    }

    pub(crate) fn dial(&mut self, from: EndPoint, to: usize) -> ConnId {
        self.net.dial(self.now, &mut self.queue, &mut self.random, from, to)
    }

    pub(crate) fn note(&mut self, node: usize, what: &'static str, a: u64, b: u64) {
        self.trace.note(self.now, node, what, a, b);
    }

    pub(crate) fn say(&mut self, node: usize, text: impl FnOnce() -> String) {
        self.trace.say(self.now, node, text);
    }

    /// What must never be. The first one counts.
    pub(crate) fn violate(&mut self, text: String) {
        if self.violation.is_none() {
            self.trace.say(self.now, crate::trace::WORLD, || format!("VIOLATION {text}"));
            self.violation = Some(Violation(text));
        }
    }

    /// A check's outcome.
    pub(crate) fn require(&mut self, outcome: Result<(), String>) {
        if let Err(text) = outcome {
            self.violate(text);
        }
    }

    /// Which process runs there.
    pub(crate) fn boot_of(&self, node: usize) -> BootId {
        self.boots.get(node).copied().unwrap_or_default()
    }

    /// Whether something changed at the election service since the last question.
    pub(crate) fn service_changed(&self) -> bool {
        self.bell.0.swap(false, Ordering::Relaxed)
    }
}

/// A node's name.
pub(crate) fn name(node: usize) -> NodeId {
    NodeId(format!("n{node}"))
}

/// Where it is dialled.
pub(crate) fn address(node: usize) -> String {
    format!("kdbr://n{node}")
}

/// Whose address it is.
pub(crate) fn node_at(address: &str) -> Option<usize> {
    address.strip_prefix("kdbr://n")?.parse().ok()
}
