//! Files in memory, with a page cache that loses power and a disk that fails.
//!
//! Every file has two images: what programs see (the cache) and what is on the platter. Writes go to the first and are listed
//! as pending; a flush brings them to the second. Names have the same two images. A power loss keeps of what is pending any
//! subset, by sector of 512 bytes, some of them torn; any subset of the changes of names; and drops the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kahawai_env::{File, Files, Lock, OpenMode, check_name};
use kahawai_types::Millis;

use crate::Random;

/// What a disk writes at once.
pub const SECTOR_BYTES: usize = 512;

/// A data directory in memory. Clones are the same one, as seen by the same process.
#[derive(Clone, Debug)]
pub struct MemoryFiles {
    world: Arc<Mutex<World>>,
    process: u64,
}

#[derive(Debug, Default)]
struct World {
    /// Grows when the process dies; handles of an earlier one only give errors.
    process: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<String, Entry>,
    durable_names: BTreeMap<String, Entry>,
    pending_names: Vec<NameChange>,
    locks: BTreeSet<String>,
    faults: Faults,
    /// The machine stopped in the middle of an operation.
    dead: bool,
    writes: u64,
    flushes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(usize),
    Directory,
}

#[derive(Clone, Debug)]
struct NameChange {
    /// Gone afterwards.
    from: Option<String>,
    /// There afterwards.
    to: Option<(String, Entry)>,
}

#[derive(Debug, Default)]
struct Inode {
    cache: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Default)]
struct Faults {
    die_in: Option<u64>,
    fail_write_in: Option<u64>,
    fail_flush_in: Option<u64>,
    fail_read_in: Option<u64>,
    bytes_max: Option<u64>,
    short_reads: Option<Random>,
    lies: bool,
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => image.resize(*length, 0),
        Change::Write(at, bytes) => {
            let end = at + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*at..end].copy_from_slice(bytes);
        }
    }
}

fn apply_name(names: &mut BTreeMap<String, Entry>, change: &NameChange) {
    if let Some(from) = &change.from {
        names.remove(from);
    }
    if let Some((to, entry)) = &change.to {
        names.insert(to.clone(), *entry);
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Counts down to a fault; true when it strikes.
fn strikes(countdown: &mut Option<u64>) -> bool {
    match countdown {
        Some(0) => {
            *countdown = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!("injected: {what}"))
}

impl MemoryFiles {
    /// An empty directory.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { world: Arc::default(), process: 0 }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, World>> {
        let world = self.world();
        if world.dead || world.process != self.process {
            return Err(broken("this process is dead"));
        }
        Ok(world)
    }

    /// For operations that change something: here the machine may stop.
    fn change(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.alive()?;
        if strikes(&mut world.faults.die_in) {
            world.dead = true;
            return Err(broken("the machine stops"));
        }
        Ok(world)
    }

    /// The machine stops at the change (write, flush, new name) after `count` further ones. A write is still taken into the
    /// cache, so [`crash`](Self::crash) can tear it.
    pub fn die_after(&self, count: u64) {
        self.world().faults.die_in = Some(count);
    }

    /// The power fails. Returns the directory as the next process finds it; everything open so far is dead.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let world = &mut *self.world();
        // Sometimes nothing survives and sometimes everything.
        let survive = |random: &mut Random, mood: u64| match mood {
            0 => false,
            1 => true,
            _ => random.chance(2),
        };
        let mood = random.below(5);
        for change in std::mem::take(&mut world.pending_names) {
            if survive(&mut random, mood) {
                apply_name(&mut world.durable_names, &change);
            }
        }
        for inode in &mut world.inodes {
            let mood = random.below(6);
            for change in std::mem::take(&mut inode.pending) {
                match change {
                    Change::Length(_) if survive(&mut random, mood) => apply(&mut inode.durable, &change),
                    Change::Length(_) => {}
                    Change::Write(mut at, bytes) => {
                        let mut rest = &bytes[..];
                        while !rest.is_empty() {
                            let (sector, behind) =
                                rest.split_at(rest.len().min(SECTOR_BYTES - at % SECTOR_BYTES));
                            if survive(&mut random, mood) {
                                let torn = mood > 1 && random.chance(8);
                                let kept = if torn {
                                    random.below(sector.len() as u64) as usize
                                } else {
                                    sector.len()
                                };
                                if kept > 0 {
                                    apply(&mut inode.durable, &Change::Write(at, sector[..kept].to_vec()));
                                }
                            }
                            at += sector.len();
                            rest = behind;
                        }
                    }
                }
            }
            inode.cache = inode.durable.clone();
        }
        // What lies in a directory that was lost is lost.
        let names = world.durable_names.clone();
        world.durable_names.retain(|name, _| {
            let above = parent(name);
            above.is_empty() || names.contains_key(above)
        });
        world.names = world.durable_names.clone();
        self.next_process(world)
    }

    /// The process is killed, the machine stays up: the cache survives, locks do not.
    #[must_use]
    pub fn kill(&self) -> Self {
        self.next_process(&mut self.world())
    }

    fn next_process(&self, world: &mut World) -> Self {
        world.locks.clear();
        world.faults = Faults::default();
        world.dead = false;
        world.process += 1;
        Self { world: self.world.clone(), process: world.process }
    }

    /// The write after `count` further ones fails, half done.
    pub fn fail_write_after(&self, count: u64) {
        self.world().faults.fail_write_in = Some(count);
    }

    /// The read after `count` further ones fails.
    pub fn fail_read_after(&self, count: u64) {
        self.world().faults.fail_read_in = Some(count);
    }

    /// The flush (of a file or directory) after `count` further ones fails. As on Linux, what it should have flushed of a file
    /// is clean from then on: later flushes succeed without it, and it is read back until the cache is dropped. Names stay
    /// pending: file systems keep them in a journal of their own, and stop when that fails.
    pub fn fail_flush_after(&self, count: u64) {
        self.world().faults.fail_flush_in = Some(count);
    }

    /// The disk is full when all files together would be longer than `bytes`.
    pub fn limit_bytes(&self, bytes: Option<u64>) {
        self.world().faults.bytes_max = bytes;
    }

    /// Flushes of data files say that they are done, and do nothing.
    pub fn lie(&self) {
        self.world().faults.lies = true;
    }

    /// No fault that was asked for strikes any more.
    pub fn mend(&self) {
        self.world().faults = Faults::default();
    }

    /// How long all files together are.
    pub fn bytes(&self) -> u64 {
        let world = self.world();
        let length = |entry: &Entry| match entry {
            Entry::File(inode) => world.inodes.get(*inode).map_or(0, |inode| inode.cache.len() as u64),
            Entry::Directory => 0,
        };
        world.names.values().map(length).sum()
    }

    /// Reads return less than asked for, at random.
    pub fn read_short(&self, seed: u64) {
        self.world().faults.short_reads = Some(Random::new(seed));
    }

    /// Changes a byte, in the cache and on the platter.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let world = &mut *self.world();
        let Some(&Entry::File(inode)) = world.names.get(name) else { panic!("no file {name}") };
        world.inodes[inode].cache[offset] ^= mask;
        if let Some(byte) = world.inodes[inode].durable.get_mut(offset) {
            *byte ^= mask;
        }
    }

    /// What a program reads from a file; `None` if there is none.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let world = self.world();
        match world.names.get(name) {
            Some(&Entry::File(inode)) => Some(world.inodes[inode].cache.clone()),
            _ => None,
        }
    }

    /// Makes a file with this content, durably.
    pub fn put(&self, name: &str, content: &[u8]) {
        let world = &mut *self.world();
        let inode = world.inodes.len();
        world.inodes.push(Inode { cache: content.to_vec(), durable: content.to_vec(), pending: Vec::new() });
        let mut above = parent(name);
        while !above.is_empty() {
            world.names.insert(above.to_owned(), Entry::Directory);
            world.durable_names.insert(above.to_owned(), Entry::Directory);
            above = parent(above);
        }
        world.names.insert(name.to_owned(), Entry::File(inode));
        world.durable_names.insert(name.to_owned(), Entry::File(inode));
    }

    /// A copy that has its own fate, as a fresh process would see it.
    #[must_use]
    pub fn fork(&self) -> Self {
        let world = self.world();
        let inodes = world.inodes.iter().map(|inode| Inode {
            cache: inode.cache.clone(),
            durable: inode.durable.clone(),
            pending: inode.pending.clone(),
        });
        let copy = World {
            inodes: inodes.collect(),
            names: world.names.clone(),
            durable_names: world.durable_names.clone(),
            pending_names: world.pending_names.clone(),
            ..World::default()
        };
        Self { world: Arc::new(Mutex::new(copy)), process: 0 }
    }

    /// Writes and flushes so far.
    pub fn operations(&self) -> (u64, u64) {
        let world = self.world();
        (world.writes, world.flushes)
    }
}

impl World {
    fn is_directory(&self, name: &str) -> bool {
        name.is_empty() || self.names.get(name) == Some(&Entry::Directory)
    }

    fn change_name(&mut self, change: NameChange) {
        apply_name(&mut self.names, &change);
        self.pending_names.push(change);
    }

    fn lookup(&self, name: &str) -> io::Result<Entry> {
        check_name(name)?;
        if name.is_empty() {
            return Ok(Entry::Directory);
        }
        self.names.get(name).copied().ok_or_else(|| io::Error::new(ErrorKind::NotFound, name.to_owned()))
    }

    /// Takes room for an image that grows; an error if the disk is full.
    fn make_room(&self, inode: usize, length: usize) -> io::Result<()> {
        let Some(limit) = self.faults.bytes_max else { return Ok(()) };
        let growth = length.saturating_sub(self.inodes[inode].cache.len()) as u64;
        let reachable: BTreeSet<usize> = self
            .names
            .values()
            .filter_map(|entry| match entry {
                Entry::File(inode) => Some(*inode),
                Entry::Directory => None,
            })
            .collect();
        let all: u64 = reachable.iter().map(|&inode| self.inodes[inode].cache.len() as u64).sum();
        if growth > 0 && all + growth > limit {
            return Err(io::Error::new(ErrorKind::StorageFull, "injected: the disk is full"));
        }
        Ok(())
    }
}

impl Files for MemoryFiles {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let world = &mut *self.alive()?;
        let inode = match (world.lookup(name), mode) {
            (Ok(Entry::Directory), _) => {
                return Err(io::Error::new(ErrorKind::IsADirectory, name.to_owned()));
            }
            (Ok(_), OpenMode::CreateNew) => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, name.to_owned()));
            }
            (Ok(_), _) if world.locks.contains(name) => {
                return Err(io::Error::new(ErrorKind::ResourceBusy, "held as a lock"));
            }
            (Ok(Entry::File(inode)), _) => inode,
            (Err(error), OpenMode::Read) => return Err(error),
            (Err(error), _) if error.kind() != ErrorKind::NotFound => return Err(error),
            (Err(error), _) if !world.is_directory(parent(name)) => return Err(error),
            (Err(_), _) => {
                if strikes(&mut world.faults.die_in) {
                    world.dead = true;
                    return Err(broken("the machine stops"));
                }
                world.inodes.push(Inode::default());
                let inode = world.inodes.len() - 1;
                world.change_name(NameChange { from: None, to: Some((name.to_owned(), Entry::File(inode))) });
                inode
            }
        };
        let is_data = name.starts_with("db-");
        Ok(Arc::new(MemoryFile { files: self.clone(), inode, is_data, writable: mode != OpenMode::Read }))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let world = self.alive()?;
        if world.lookup(directory)? != Entry::Directory {
            return Err(io::Error::new(ErrorKind::NotADirectory, directory.to_owned()));
        }
        let inside = world.names.keys().filter(|name| parent(name) == directory);
        Ok(inside.map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()).collect())
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let world = &mut *self.alive()?;
        let mut path = String::new();
        for part in name.split('/').filter(|part| !part.is_empty()) {
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(part);
            match world.names.get(&path) {
                Some(Entry::Directory) => {}
                Some(_) => return Err(io::Error::new(ErrorKind::AlreadyExists, path)),
                // Durable at once, as the real one makes it.
                None => {
                    world.names.insert(path.clone(), Entry::Directory);
                    world.durable_names.insert(path.clone(), Entry::Directory);
                }
            }
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(to)?;
        let world = &mut *self.change()?;
        let entry = world.lookup(from)?;
        if entry == Entry::Directory {
            return Err(io::Error::new(ErrorKind::Unsupported, "directories are not renamed"));
        }
        if !world.is_directory(parent(to)) || world.is_directory(to) {
            return Err(io::Error::new(ErrorKind::NotFound, to.to_owned()));
        }
        world.change_name(NameChange { from: Some(from.to_owned()), to: Some((to.to_owned(), entry)) });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let world = &mut *self.change()?;
        match world.lookup(name)? {
            Entry::Directory => Err(io::Error::new(ErrorKind::IsADirectory, name.to_owned())),
            Entry::File(_) => {
                world.change_name(NameChange { from: Some(name.to_owned()), to: None });
                Ok(())
            }
        }
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        match self.alive()?.lookup(name) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        let world = &mut *self.change()?;
        world.lookup(name)?;
        world.flushes += 1;
        let touches = |change: &NameChange| {
            change.from.as_deref().is_some_and(|from| parent(from) == name)
                || change.to.as_ref().is_some_and(|(to, _)| parent(to) == name)
        };
        let fails = strikes(&mut world.faults.fail_flush_in);
        for change in std::mem::take(&mut world.pending_names) {
            if fails || !touches(&change) {
                world.pending_names.push(change);
            } else {
                apply_name(&mut world.durable_names, &change);
            }
        }
        if fails { Err(broken("the flush of a directory fails")) } else { Ok(()) }
    }

    fn describe(&self, name: &str) -> String {
        format!("memory:/{name}")
    }

    fn lock(&self, name: &str, now: Millis) -> io::Result<Option<Box<dyn Lock>>> {
        if self.alive()?.locks.contains(name) {
            return Ok(None);
        }
        let file = self.open(name, OpenMode::Write)?;
        file.write_at(&now.to_be_bytes(), 0)?;
        file.sync_all()?;
        self.alive()?.locks.insert(name.to_owned());
        Ok(Some(Box::new(MemoryLock { files: self.clone(), name: name.to_owned() })))
    }
}

#[derive(Debug)]
struct MemoryLock {
    files: MemoryFiles,
    name: String,
}

impl Lock for MemoryLock {
    fn is_in_place(&self) -> io::Result<bool> {
        Ok(self.files.alive()?.locks.contains(&self.name))
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        if let Ok(mut world) = self.files.alive() {
            world.locks.remove(&self.name);
        }
    }
}

#[derive(Debug)]
struct MemoryFile {
    files: MemoryFiles,
    inode: usize,
    is_data: bool,
    writable: bool,
}

impl MemoryFile {
    fn flush(&self) -> io::Result<()> {
        let world = &mut *self.files.change()?;
        world.flushes += 1;
        if world.faults.lies && self.is_data {
            return Ok(());
        }
        let fails = strikes(&mut world.faults.fail_flush_in);
        let inode = &mut world.inodes[self.inode];
        for change in std::mem::take(&mut inode.pending) {
            if !fails {
                apply(&mut inode.durable, &change);
            }
        }
        if fails { Err(broken("the flush fails")) } else { Ok(()) }
    }

    fn change(&self, change: Change) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "opened to read"));
        }
        let world = &mut *self.files.alive()?;
        world.writes += 1;
        let dies = strikes(&mut world.faults.die_in);
        world.dead = dies;
        let fails = strikes(&mut world.faults.fail_write_in);
        let end = match &change {
            Change::Write(at, bytes) => at + bytes.len(),
            Change::Length(length) => *length,
        };
        world.make_room(self.inode, end)?;
        let change = match change {
            Change::Write(at, bytes) if fails => Change::Write(at, bytes[..bytes.len() / 2].to_vec()),
            change => change,
        };
        let inode = &mut world.inodes[self.inode];
        apply(&mut inode.cache, &change);
        inode.pending.push(change);
        if fails || dies { Err(broken("the write fails")) } else { Ok(()) }
    }
}

impl File for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = &mut *self.files.alive()?;
        if strikes(&mut world.faults.fail_read_in) {
            return Err(broken("read"));
        }
        let image = &world.inodes[self.inode].cache;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
        let mut count = buf.len().min(image.len() - from);
        if let Some(random) = &mut world.faults.short_reads
            && count > 1
        {
            count = 1 + random.below(count as u64) as usize;
        }
        buf[..count].copy_from_slice(&image[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.flush()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.flush()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.files.alive()?.inodes[self.inode].cache.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
        self.change(Change::Length(len))
    }

    fn drop_cache(&self) -> io::Result<()> {
        let inode = &mut self.files.alive()?.inodes[self.inode];
        inode.cache = inode.durable.clone();
        for change in &inode.pending {
            apply(&mut inode.cache, change);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &MemoryFiles) -> Arc<dyn File> {
        let file = files.open("a", OpenMode::CreateNew).unwrap();
        files.sync_directory("").unwrap();
        file.write_at(&[1; 2000], 0).unwrap();
        file.sync_data().unwrap();
        file.write_at(&[2; 2000], 1000).unwrap();
        file
    }

    #[test]
    fn a_crash_keeps_what_was_flushed_and_any_sectors_of_the_rest() {
        let mut images = BTreeSet::new();
        for seed in 0..200 {
            let files = MemoryFiles::new();
            let dead = written(&files);
            let after = files.crash(seed);
            assert!(dead.len().is_err());
            let image = after.content("a").unwrap();
            assert_eq!(image[..1000], [1; 1000]);
            assert!(image.len() >= 2000);
            assert_eq!(
                MemoryFiles::content(
                    &{
                        let files = MemoryFiles::new();
                        written(&files);
                        files.crash(seed)
                    },
                    "a"
                ),
                Some(image.clone()),
                "the same seed gives the same image"
            );
            images.insert(image);
        }
        assert!(images.len() > 20, "only {} different outcomes", images.len());
    }

    #[test]
    fn names_are_lost_without_a_flush_of_their_directory() {
        let outcome = |flush: bool, seed| {
            let files = MemoryFiles::new();
            files.open("tmp", OpenMode::CreateNew).unwrap().sync_all().unwrap();
            files.rename("tmp", "b").unwrap();
            if flush {
                files.sync_directory("").unwrap();
            }
            files.crash(seed).list("").unwrap()
        };
        let lost: BTreeSet<_> = (0..50).map(|seed| outcome(false, seed)).collect();
        assert!(
            lost.contains(&vec![])
                && lost.contains(&vec!["b".to_owned()])
                && lost.contains(&vec!["tmp".to_owned()])
        );
        assert!((0..50).all(|seed| outcome(true, seed) == ["b"]));
    }

    #[test]
    fn a_failed_flush_lies_from_then_on() {
        let files = MemoryFiles::new();
        let file = written(&files);
        files.fail_flush_after(0);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        assert_eq!(files.content("a").unwrap().len(), 3000, "the cache still has it");
        let same = files.fork();
        let again = same.open("a", OpenMode::Read).unwrap();
        again.drop_cache().unwrap();
        assert_eq!(again.len().unwrap(), 2000);
        assert_eq!(files.crash(1).content("a").unwrap(), [1; 2000]);
    }
}
