//! The network between nodes: byte streams with delay, that stall, break in the middle of a frame, or die on one side alone.
//!
//! As with TCP, what arrives is a beginning of what was sent. While a link is cut its bytes wait; a reset drops any end of
//! them, and one side may never hear of it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kahawai_testkit::Random;

use crate::Micros;
use crate::event::Event;
use crate::queue::Queue;

/// How long bytes wait for a link before they are looked at again.
const STALL: Micros = 100_000;
/// Bytes that waited so long end their connection.
const PATIENCE: Micros = 20_000_000;

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ConnId(pub(crate) u32);

/// Which end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Dialler,
    Acceptor,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }
}

/// What comes out at an end.
#[derive(Debug)]
pub(crate) enum Arrival {
    Bytes(Bytes),
    /// The other end is gone.
    Closed,
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    under_way: VecDeque<(Micros, Arrival)>,
    last: Micros,
    is_scheduled: bool,
    /// What is sent vanishes.
    is_dead: bool,
}

/// A process's end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EndPoint {
    pub(crate) node: usize,
    pub(crate) life: u32,
}

#[derive(Debug)]
struct Conn {
    dialler: EndPoint,
    acceptor: EndPoint,
    /// By who receives.
    to_dialler: Pipe,
    to_acceptor: Pipe,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Net {
    conns: BTreeMap<ConnId, Conn>,
    last: u32,
    /// From, to.
    cuts: Vec<(usize, usize)>,
    /// Microseconds, at least and at most.
    pub(crate) delay: (Micros, Micros),
}

impl Net {
    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to))
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        if !self.is_cut(from, to) {
            self.cuts.push((from, to));
        }
    }

    pub(crate) fn heal(&mut self, from: usize, to: usize) {
        self.cuts.retain(|cut| *cut != (from, to));
    }

    pub(crate) fn heal_all(&mut self) {
        self.cuts.clear();
    }

    fn delay(&self, random: &mut Random) -> Micros {
        let (least, most) = self.delay;
        least + random.below(most - least + 1)
    }

    /// Begins to connect.
    pub(crate) fn dial(
        &mut self,
        now: Micros,
        queue: &mut Queue,
        random: &mut Random,
        from: EndPoint,
        to: usize,
    ) -> ConnId {
        self.last += 1;
        let conn = ConnId(self.last);
        let acceptor = EndPoint { node: to, life: 0 };
        let new = Conn { dialler: from, acceptor, to_dialler: Pipe::default(), to_acceptor: Pipe::default() };
        self.conns.insert(conn, new);
        queue.push(now + self.delay(random), Event::Dial { conn });
        conn
    }

    /// Who dials whom.
    pub(crate) fn ends(&self, conn: ConnId) -> Option<(EndPoint, EndPoint)> {
        self.conns.get(&conn).map(|conn| (conn.dialler, conn.acceptor))
    }

    /// The target took it.
    pub(crate) fn accepted(&mut self, conn: ConnId, life: u32) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.acceptor.life = life;
        }
    }

    pub(crate) fn forget(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
    }

    /// Sends from one end.
    pub(crate) fn send(
        &mut self,
        now: Micros,
        queue: &mut Queue,
        random: &mut Random,
        conn: ConnId,
        from: Side,
        what: Arrival,
    ) {
        let delay = self.delay(random);
        let Some(one) = self.conns.get_mut(&conn) else { return };
        let to = from.other();
        let pipe = if to == Side::Dialler { &mut one.to_dialler } else { &mut one.to_acceptor };
        if pipe.is_dead {
            return;
        }
        let closes = matches!(what, Arrival::Closed);
        let at = (now + delay).max(pipe.last);
        pipe.last = at;
        pipe.under_way.push_back((at, what));
        pipe.is_dead = closes;
        if !pipe.is_scheduled {
            pipe.is_scheduled = true;
            queue.push(at, Event::Wire { conn, to });
        }
    }

    /// What has arrived at an end. Several at once.
    pub(crate) fn arrivals(
        &mut self,
        now: Micros,
        queue: &mut Queue,
        conn: ConnId,
        to: Side,
        out: &mut Vec<Arrival>,
    ) -> Option<EndPoint> {
        let cuts = &self.cuts;
        let one = self.conns.get_mut(&conn)?;
        let (dialler, acceptor) = (one.dialler, one.acceptor);
        let (from, receiver, pipe) = match to {
            Side::Dialler => (acceptor.node, dialler, &mut one.to_dialler),
            Side::Acceptor => (dialler.node, acceptor, &mut one.to_acceptor),
        };
        pipe.is_scheduled = false;
        if cuts.contains(&(from, receiver.node)) {
            let waited = pipe.under_way.front().map_or(0, |(at, _)| now.saturating_sub(*at));
            if waited < PATIENCE {
                pipe.is_scheduled = true;
                queue.push(now + STALL, Event::Wire { conn, to });
                return Some(receiver);
            }
            pipe.under_way.clear();
            pipe.is_dead = true;
            out.push(Arrival::Closed);
            return Some(receiver);
        }
        while pipe.under_way.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, arrival)) = pipe.under_way.pop_front()
        {
            out.push(arrival);
        }
        if let Some((at, _)) = pipe.under_way.front() {
            pipe.is_scheduled = true;
            queue.push(*at, Event::Wire { conn, to });
        }
        Some(receiver)
    }

    /// Breaks a connection: of what is under way in each direction some beginning arrives, cut anywhere; each end hears of it or
    /// not.
    pub(crate) fn reset(
        &mut self,
        now: Micros,
        queue: &mut Queue,
        random: &mut Random,
        conn: ConnId,
        half_open: bool,
    ) {
        let Some(one) = self.conns.get_mut(&conn) else { return };
        let deaf = if half_open { random.below(3) } else { 3 };
        for (number, to) in [(0, Side::Dialler), (1, Side::Acceptor)] {
            let pipe = if to == Side::Dialler { &mut one.to_dialler } else { &mut one.to_acceptor };
            let kept = random.below(pipe.under_way.len() as u64 + 1) as usize;
            pipe.under_way.truncate(kept + 1);
            if pipe.under_way.len() > kept
                && let Some((_, Arrival::Bytes(bytes))) = pipe.under_way.back_mut()
            {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
            }
            let hears = deaf != number && deaf != 2;
            if !pipe.is_dead && hears {
                let at = pipe.last.max(now);
                pipe.under_way.push_back((at, Arrival::Closed));
                if !pipe.is_scheduled {
                    pipe.is_scheduled = true;
                    queue.push(at, Event::Wire { conn, to });
                }
            }
            pipe.is_dead = true;
        }
    }

    /// A process has ended. Its peers hear of it, unless the machine lost power with it.
    pub(crate) fn ended(
        &mut self,
        now: Micros,
        queue: &mut Queue,
        random: &mut Random,
        end: EndPoint,
        silently: bool,
    ) {
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in ids {
            let Some(one) = self.conns.get(&id) else { continue };
            let side = match (one.dialler == end, one.acceptor == end) {
                (true, _) => Side::Dialler,
                (_, true) => Side::Acceptor,
                _ => continue,
            };
            if silently {
                if let Some(one) = self.conns.get_mut(&id) {
                    for pipe in [&mut one.to_dialler, &mut one.to_acceptor] {
                        pipe.is_dead = true;
                        let kept = random.below(pipe.under_way.len() as u64 + 1);
                        pipe.under_way.truncate(kept as usize);
                    }
                }
            } else {
                self.send(now, queue, random, id, side, Arrival::Closed);
            }
        }
    }

    /// A machine is back, and refuses what it does not know: its old peers hear that their connections are gone.
    pub(crate) fn returned(&mut self, now: Micros, queue: &mut Queue, random: &mut Random, node: usize) {
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in ids {
            let Some(one) = self.conns.get_mut(&id) else { continue };
            let to = if one.dialler.node == node { Side::Acceptor } else { Side::Dialler };
            if one.dialler.node != node && one.acceptor.node != node {
                continue;
            }
            let pipe = if to == Side::Dialler { &mut one.to_dialler } else { &mut one.to_acceptor };
            pipe.is_dead = false;
            self.send(now, queue, random, id, to.other(), Arrival::Closed);
        }
    }

    /// Some open connection.
    /// Those that there are.
    pub(crate) fn all(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }

    pub(crate) fn any(&self, random: &mut Random) -> Option<ConnId> {
        let count = self.conns.len() as u64;
        self.conns.keys().nth(random.below(count) as usize).copied()
    }
}
