//! A cluster to which happens what a test says, and nothing else; the workload runs, and every check is on.

use std::collections::BTreeSet;

use kahawai_election::memory::WriteFault;
use kahawai_types::Lsn;

use crate::check::{Counts, Oracle};
use crate::ctx::name;
use crate::event::Event;
use crate::faults;
use crate::harm::{Harm, Stage};
use crate::node::copying::Session;
use crate::node::{Process, Role};
use crate::options::{Faults, SimOptions};
use crate::world::{Outcome, World};
use crate::{Micros, Violation};

const MS: Micros = 1_000;

/// See the module. What takes a node is told its number.
pub struct Script {
    world: World,
}

impl Script {
    /// Starts so many nodes, and waits until all are in sync.
    ///
    /// # Errors
    /// What goes wrong.
    pub fn begin(seed: u64, nodes: usize, minimum_replicas: u32) -> Result<Self, Violation> {
        let options = SimOptions {
            seed,
            nodes,
            minimum_replicas,
            steps: 0,
            faults: Faults::NONE,
            mutation: None,
            verbose: true,
        };
        let mut script = Self { world: World::new(options) };
        script.until("all are in sync", |now| now.in_sync().len() == nodes && now.leader().is_some())?;
        script.until("something is confirmed", |now| now.counts().committed > 20)?;
        Ok(script)
    }

    /// Lets things happen until something holds, for two minutes at most.
    ///
    /// # Errors
    /// A check that failed, or that it never holds.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        let last = self.world.ctx.now + 120_000 * MS;
        while !holds(self) {
            if self.world.ctx.now > last {
                return Err(Violation(format!("SCRIPT: never: {what}")));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Lets so much time pass.
    ///
    /// # Errors
    /// A check that failed.
    pub fn pass(&mut self, ms: u64) -> Result<(), Violation> {
        self.pass_while("", ms, |_| true)
    }

    /// Lets so much time pass, and something has to hold all the while.
    ///
    /// # Errors
    /// A check that failed, or that it does not hold.
    pub fn pass_while(
        &mut self,
        what: &str,
        ms: u64,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<(), Violation> {
        let last = self.world.ctx.now + ms * MS;
        while self.world.ctx.now < last {
            self.step()?;
            if !holds(self) {
                return Err(Violation(format!("SCRIPT: not any more: {what}")));
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Violation> {
        let goes_on = self.world.step();
        match self.world.ctx.violation.take() {
            Some(violation) => Err(violation),
            None if goes_on => Ok(()),
            None => Err(Violation("SCRIPT: nothing will ever happen again".to_owned())),
        }
    }

    /// Everything is mended and started; the cluster has to become well, and what clients were told is checked.
    #[must_use]
    pub fn finish(self) -> Outcome {
        self.world.run()
    }

    fn process(&self, node: usize) -> Option<&Process> {
        self.world.nodes.get(node)?.process.as_ref()
    }

    /// Who leads and serves, if anybody that runs does; of several the one in the newest epoch.
    pub fn leader(&self) -> Option<usize> {
        let leading = |node: &usize| match &self.process(*node)?.role {
            Role::Leading(leading) if leading.is_open => Some((leading.epoch, *node)),
            _ => None,
        };
        let newest = (0..self.world.nodes.len()).filter_map(|node| leading(&node)).max();
        newest.map(|(_, node)| node)
    }

    /// The nodes other than that one.
    pub fn others(&self, node: usize) -> Vec<usize> {
        (0..self.world.nodes.len()).filter(|other| *other != node).collect()
    }

    /// Of the present reign by the record; 0 = there is none.
    pub fn epoch(&self) -> u64 {
        self.world.ctx.oracle.record.as_ref().map_or(0, |record| record.epoch.0)
    }

    /// By the record.
    pub fn in_sync(&self) -> BTreeSet<usize> {
        let Some(record) = &self.world.ctx.oracle.record else { return BTreeSet::new() };
        record.in_sync.iter().map(|replica| Oracle::key_of(replica).0).collect()
    }

    /// How far it is committed.
    pub fn committed(&self) -> Lsn {
        self.world.ctx.oracle.committed.last().map_or(Lsn::ZERO, |batch| batch.end)
    }

    /// How far a node's journal is flushed, as long as it runs.
    pub fn end(&self, node: usize) -> Lsn {
        let held = self.process(node).and_then(|process| {
            let key = Oracle::key_of(&process.replica());
            self.world.ctx.oracle.held.get(&key)
        });
        held.map_or(Lsn::ZERO, |held| held.end())
    }

    /// What a replica knows to be committed.
    pub fn known_commit(&self, node: usize) -> Lsn {
        match self.process(node).map(|process| &process.role) {
            Some(Role::Following(following)) => following.commit,
            Some(Role::Leading(leading)) => leading.commit,
            _ => Lsn::ZERO,
        }
    }

    /// Whether a node leads and waits for replicas.
    pub fn is_suspended(&self, node: usize) -> bool {
        matches!(self.process(node).map(|process| &process.role), Some(Role::Leading(leading)) if leading.is_suspended)
    }

    /// Whether a node leads, has written what is not confirmed, and waits.
    pub fn has_unconfirmed(&self, node: usize) -> bool {
        matches!(self.process(node).map(|process| &process.role), Some(Role::Leading(leading)) if leading.commit < leading.durable)
    }

    /// The data files of a primary.
    pub fn data_files(&self, node: usize) -> Vec<u32> {
        match self.process(node).map(|process| &process.role) {
            Some(Role::Leading(leading)) => {
                leading.store.journal().files().into_iter().map(|file| file.id).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a node fetches files.
    pub fn is_fetching(&self, node: usize) -> bool {
        match self.process(node).map(|process| &process.role) {
            Some(Role::Following(following)) => {
                matches!(&following.session, Session::Live(sink) if sink.fetch.is_some())
            }
            _ => false,
        }
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.world.ctx.oracle.counts
    }

    /// Ends a process, by a signal or because its machine loses power; it stays away until [`start`](Self::start).
    pub fn kill(&mut self, node: usize, power: bool) {
        if let Some(one) = self.world.nodes.get_mut(node) {
            one.stays_away = true;
        }
        self.world.kill(node, power);
    }

    /// Starts a node again, within a few seconds.
    pub fn start(&mut self, node: usize) {
        if let Some(one) = self.world.nodes.get_mut(node) {
            one.stays_away = false;
        }
        self.world.start_later(node);
    }

    /// Clients send nothing more, and consume what there is.
    pub fn rest(&mut self) {
        self.world.visitors.clients.quiesce();
    }

    /// A process stands still for so long.
    pub fn pause(&mut self, node: usize, ms: u64) {
        faults::pause_for(&mut self.world, node, ms * MS);
    }

    /// Between two nodes nothing passes any more.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.world.ctx.net.cut(one, other);
        self.world.ctx.net.cut(other, one);
    }

    /// Between two nodes everything passes again.
    pub fn heal(&mut self, one: usize, other: usize) {
        self.world.ctx.net.heal(one, other);
        self.world.ctx.net.heal(other, one);
    }

    /// A node does not reach the election service any more.
    pub fn cut_service(&mut self, node: usize) {
        self.world.ctx.hub.cut(&name(node));
    }

    /// It does again.
    pub fn heal_service(&mut self, node: usize) {
        self.world.ctx.hub.heal(&name(node));
    }

    /// The next write of the record that a node makes arrives when [`deliver`](Self::deliver) is called.
    pub fn delay_write(&mut self, node: usize) {
        self.world.ctx.hub.fail_next_write(&name(node), WriteFault::Delayed);
    }

    /// Whether such a write is under way.
    pub fn has_delayed(&self) -> bool {
        self.world.ctx.hub.has_delayed()
    }

    /// Lets the delayed writes arrive.
    pub fn deliver(&mut self) {
        while self.world.ctx.hub.deliver() {}
    }

    /// Some bits of a file change on the disk of some node, which is replaced by an empty one a while later.
    pub fn change_bits(&mut self) {
        self.harm(Harm::Rot);
    }

    /// The election service is restored from a backup that is made now, once all nodes have seen a newer record; a while later an
    /// operator restores the record.
    pub fn roll_back_service(&mut self) {
        self.harm(Harm::RollBack);
    }

    fn harm(&mut self, harm: Harm) {
        self.world.ctx.plan.harm = Some(harm);
        self.world.ctx.plan.stage = Stage::Before;
        self.world.ctx.at(0, Event::Harm);
    }

    /// Whether it has happened, and is not mended yet.
    pub fn is_harmed(&self) -> bool {
        matches!(self.world.ctx.plan.stage, Stage::Harmed(_) | Stage::RolledBack)
    }

    /// A machine gets an empty disk. Whether it did: only where that loses nothing.
    pub fn replace_disk(&mut self, node: usize) -> bool {
        faults::replace(&mut self.world, node)
    }

    /// All connections break.
    pub fn reset_connections(&mut self) {
        let ctx = &mut self.world.ctx;
        for conn in ctx.net.all() {
            ctx.net.reset(ctx.now, &mut ctx.queue, &mut ctx.random, conn, false);
        }
    }
}
