//! The scheduler store (`kahadb-format.md` §11): delayed and repeated messages, kept apart from the others.
//!
//! Its journal has the frame of every KahaDB journal and holds commands 0 and 11 to 15; its index `scheduleDB.data` is a
//! page file like `db.data`. [`SchedulerIndex`] reads the index into a [`SchedulerState`], and [`SchedulerState::apply`]
//! replays the journal onto it: all of it onto an empty state, or what lies behind [`SchedulerIndex::last_update`]. An
//! index may hold effects of records behind that already; applying them again changes nothing.
//!
//! The state knows where a job's message is, not the message itself: that stays in the journal, in the record at
//! [`Job::record`]. Times are stored, never computed: the next time of a cron entry is in the records too.

use std::collections::{BTreeMap, HashMap, HashSet};

use kahawai_message::{Millis, Text};
use kahawai_types::Location;
use kahawai_wire::{Reader, WireError};

use crate::command::{AddScheduledJob, Command, RescheduleJob};
use crate::pagefile::{Key, PageError, PageFile, ReadAt, Redo, Tree, Value, location, optional_location};

/// `57ed642b-1ee3-47b3-be6d-b7297d500409`: first thing on page 0 since ActiveMQ 5.11.
const TOKEN: u128 = 0x57ed_642b_1ee3_47b3_be6d_b729_7d50_0409;
/// The only version there is.
const VERSION: i32 = 1;

/// A scheduled message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its identity in its scheduler; nothing keeps two jobs from having the same.
    pub job_id: Text,
    /// When it was scheduled, rounded to half seconds.
    pub start_ms: Millis,
    /// Cron entry; empty = none.
    pub cron_entry: Text,
    /// Wait before the first time.
    pub delay_ms: Millis,
    /// Wait between repetitions.
    pub period_ms: Millis,
    /// Repetitions left; -1 = for ever.
    pub repeat: i32,
    /// When it fires next.
    pub next_execution_ms: Millis,
    /// How often it was rescheduled; the index does not say, so that it counts from 0 there.
    pub rescheduled_count: i32,
    /// The add record, whose payload is the message.
    pub record: Location,
    /// The newest reschedule record. Its file must stay as long as the job does, as must that of `record`.
    pub last_update: Option<Location>,
}

/// Jobs of one scheduler, by the time they are filed under.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Jobs {
    by_time: BTreeMap<Millis, Vec<Job>>,
    /// Where to look for an id.
    times: HashMap<Text, Vec<Millis>>,
    /// The add records of all jobs.
    records: HashSet<Location>,
}

impl Jobs {
    fn insert(&mut self, job: Job) {
        let time = job.next_execution_ms;
        self.records.insert(job.record);
        self.times.entry(job.job_id.clone()).or_default().push(time);
        self.by_time.entry(time).or_default().push(job);
    }

    /// Takes the first job of that id out of that time.
    fn remove(&mut self, job_id: &Text, time: Millis) -> Option<Job> {
        let jobs = self.by_time.get_mut(&time)?;
        let index = jobs.iter().position(|job| job.job_id == *job_id)?;
        let job = jobs.remove(index);
        if jobs.is_empty() {
            self.by_time.remove(&time);
        }
        self.forget(&job);
        Some(job)
    }

    fn forget(&mut self, job: &Job) {
        self.records.remove(&job.record);
        if let Some(times) = self.times.get_mut(&job.job_id) {
            if let Some(index) = times.iter().position(|&time| time == job.next_execution_ms) {
                times.swap_remove(index);
            }
            if times.is_empty() {
                self.times.remove(&job.job_id);
            }
        }
    }

    fn of_id(&self, job_id: &Text) -> impl Iterator<Item = &Job> {
        let times = self.times.get(job_id).into_iter().flatten();
        let jobs = times.filter_map(|time| self.by_time.get(time)).flatten();
        jobs.filter(move |job| job.job_id == *job_id)
    }

    fn remove_everywhere(&mut self, job_id: &Text) {
        for time in self.times.get(job_id).cloned().unwrap_or_default() {
            self.remove(job_id, time);
        }
    }

    fn remove_range(&mut self, start: Millis, last: Millis) {
        if start > last {
            return;
        }
        let times: Vec<Millis> = self.by_time.range(start..=last).map(|(&time, _)| time).collect();
        for time in times {
            for job in self.by_time.remove(&time).into_iter().flatten() {
                self.forget(&job);
            }
        }
    }
}

/// All schedulers with their jobs.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct SchedulerState {
    schedulers: BTreeMap<Text, Jobs>,
}

impl SchedulerState {
    /// Nothing scheduled.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the record at `at` does. References to jobs that are not there do nothing, and so do commands that no
    /// scheduler store holds.
    pub fn apply(&mut self, command: &Command, at: Location) {
        match command {
            Command::AddScheduledJob(add) => self.add(add, at),
            Command::RescheduleJob(reschedule) => self.reschedule(reschedule, at),
            Command::RemoveScheduledJob(remove) => {
                let jobs = self.scheduler(&remove.scheduler);
                match remove.next_execution_ms {
                    Some(time) => {
                        jobs.remove(&remove.job_id, time);
                    }
                    None => jobs.remove_everywhere(&remove.job_id),
                }
            }
            Command::RemoveScheduledJobs(remove) => {
                self.scheduler(&remove.scheduler).remove_range(remove.start_ms, remove.last_ms);
            }
            Command::DestroyScheduler { scheduler } => {
                self.schedulers.remove(scheduler);
            }
            _ => {}
        }
    }

    /// Any mention makes a scheduler, as upstream has it.
    fn scheduler(&mut self, name: &Text) -> &mut Jobs {
        self.schedulers.entry(name.clone()).or_default()
    }

    fn add(&mut self, add: &AddScheduledJob, at: Location) {
        let jobs = self.scheduler(&add.scheduler);
        // The index may be ahead of its last update, and this job in it under a later time.
        if jobs.records.contains(&at) {
            return;
        }
        jobs.insert(Job {
            job_id: add.job_id.clone(),
            start_ms: add.start_ms,
            cron_entry: add.cron_entry.clone(),
            delay_ms: add.delay_ms,
            period_ms: add.period_ms,
            repeat: add.repeat,
            next_execution_ms: add.next_execution_ms,
            rescheduled_count: 0,
            record: at,
            last_update: None,
        });
    }

    fn reschedule(&mut self, reschedule: &RescheduleJob, at: Location) {
        let jobs = self.scheduler(&reschedule.scheduler);
        // Again: the index may be ahead, and there may be another job of that id at that time.
        if jobs.of_id(&reschedule.job_id).any(|job| job.last_update >= Some(at)) {
            return;
        }
        let Some(mut job) = jobs.remove(&reschedule.job_id, reschedule.execution_ms) else { return };
        job.next_execution_ms = reschedule.next_execution_ms;
        job.rescheduled_count = reschedule.rescheduled_count;
        job.last_update = Some(at);
        if job.cron_entry.is_empty() && job.repeat > 0 {
            job.repeat -= 1;
        }
        jobs.insert(job);
    }

    /// Names of all schedulers, also of those without jobs.
    pub fn schedulers(&self) -> impl Iterator<Item = &Text> {
        self.schedulers.keys()
    }

    /// The jobs of one scheduler by the time of their next execution.
    pub fn jobs(&self, scheduler: &str) -> impl Iterator<Item = &Job> {
        self.schedulers.get(scheduler).into_iter().flat_map(|jobs| jobs.by_time.values().flatten())
    }
}

/// `scheduleDB.data`, read only.
#[derive(Debug)]
pub struct SchedulerIndex<'a> {
    pages: PageFile<'a>,
    last_update: Option<Location>,
    schedulers: i64,
    references: i64,
    removals: i64,
}

impl<'a> SchedulerIndex<'a> {
    /// Reads header, redo file and metadata of `scheduleDB.data` and `scheduleDB.redo`.
    /// [`PageError::SchedulerToken`]: a store from before ActiveMQ 5.11, which upstream converts and we do not read.
    ///
    /// ```text
    /// page 0: | token: u128 | version: i32 | last update: bool, location | schedulers: i64 | references: i64 | removals: i64 |
    /// ```
    pub fn open(data: &'a dyn ReadAt, redo: Option<&'a dyn ReadAt>) -> Result<Self, PageError> {
        let pages = PageFile::open(data, redo)?;
        let (page, bytes) = pages.chain(0, &mut HashSet::new())?;
        let content = |source| PageError::Content { page, source };
        let reader = &mut Reader::new(bytes);
        let token =
            u128::from(reader.u64().map_err(content)?) << 64 | u128::from(reader.u64().map_err(content)?);
        if token != TOKEN {
            return Err(PageError::SchedulerToken { found: token });
        }
        let version = reader.i32().map_err(content)?;
        if version != VERSION {
            return Err(PageError::Version { found: version });
        }
        let last_update = optional_location(reader).map_err(content)?;
        let mut root = || reader.i64().map_err(content);
        let (schedulers, references, removals) = (root()?, root()?, root()?);
        Ok(Self { pages, last_update, schedulers, references, removals })
    }

    /// The index reflects the journal up to this record, itself included. `None` = nothing.
    pub fn last_update(&self) -> Option<Location> {
        self.last_update
    }

    /// What became of `scheduleDB.redo`.
    pub fn redo(&self) -> Redo {
        self.pages.redo()
    }

    fn tree<K: Key, V: Value>(&self, root: i64) -> Tree<'_, K, V> {
        Tree::new(&self.pages, VERSION, root)
    }

    /// All jobs. They are all in memory then, without their messages.
    pub fn state(&self) -> Result<SchedulerState, PageError> {
        let mut state = SchedulerState::new();
        let mut roots = HashSet::new();
        for entry in self.tree::<Text, SchedulerPages>(self.schedulers) {
            let (name, pages) = entry?;
            if !roots.insert(pages.jobs) {
                return Err(PageError::Reused { page: pages.jobs.cast_unsigned() });
            }
            let jobs = state.scheduler(&name);
            for entry in self.tree::<Millis, Filed>(pages.jobs) {
                let (time, Filed(filed)) = entry?;
                for mut job in filed {
                    // The key is what upstream finds a job by.
                    job.next_execution_ms = time;
                    jobs.insert(job);
                }
            }
        }
        Ok(state)
    }

    /// How many live jobs have their add or newest reschedule record in each file.
    pub fn references(&self) -> Result<BTreeMap<i32, i32>, PageError> {
        self.tree(self.references).collect()
    }

    /// For each file with removals, the files of what was removed: it must outlive them.
    pub fn removals(&self) -> Result<BTreeMap<i32, Vec<i32>>, PageError> {
        self.tree::<i32, Files>(self.removals)
            .map(|entry| entry.map(|(file, Files(files))| (file, files)))
            .collect()
    }
}

struct SchedulerPages {
    jobs: i64,
}

impl Value for SchedulerPages {
    /// The name again, and the root of the tree of its jobs.
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        reader.java_utf()?;
        Ok(Self { jobs: reader.i64()? })
    }
}

struct Files(Vec<i32>);

impl Value for Files {
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        let count = counted(reader)?;
        let mut files = Vec::with_capacity(count.min(reader.remaining() / 4));
        for _ in 0..count {
            files.push(reader.i32()?);
        }
        Ok(Self(files))
    }
}

/// The jobs that are due at one time.
struct Filed(Vec<Job>);

impl Value for Filed {
    /// ```text
    /// | count: i32 | count x (id: UTF | repeat: i32 | start: i64 | delay: i64 | next: i64 | period: i64 | cron: UTF
    ///                         | location | bool | if true location) |
    /// ```
    fn read(reader: &mut Reader, version: i32) -> Result<Self, WireError> {
        let count = counted(reader)?;
        let mut jobs = Vec::with_capacity(count.min(reader.remaining() / JOB_BYTES_MIN));
        for _ in 0..count {
            jobs.push(job(reader, version)?);
        }
        Ok(Self(jobs))
    }
}

/// A job with empty texts and without a last update.
const JOB_BYTES_MIN: usize = 2 + 4 + 4 * 8 + 2 + 13 + 1;

fn job(reader: &mut Reader, _: i32) -> Result<Job, WireError> {
    let job_id = reader.java_utf()?;
    let repeat = reader.i32()?;
    let start_ms = reader.i64()?;
    let delay_ms = reader.i64()?;
    let next_execution_ms = reader.i64()?;
    let period_ms = reader.i64()?;
    let cron_entry = reader.java_utf()?;
    let record = full_location(reader)?;
    let last_update = if reader.bool()? { Some(full_location(reader)?) } else { None };
    Ok(Job {
        job_id,
        start_ms,
        cron_entry,
        delay_ms,
        period_ms,
        repeat,
        next_execution_ms,
        rescheduled_count: 0,
        record,
        last_update,
    })
}

/// `int file, int offset, int size, byte type`.
fn full_location(reader: &mut Reader) -> Result<Location, WireError> {
    let location = location(reader)?;
    reader.skip(5)?;
    Ok(location)
}

fn counted(reader: &mut Reader) -> Result<usize, WireError> {
    let at = reader.position();
    let count = reader.i32()?;
    usize::try_from(count).map_err(|_| WireError::Length { at, length: count.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{RemoveScheduledJob, RemoveScheduledJobs};

    const JMS: Text = Text::from_static("JMS");

    fn add(id: &'static str, time: Millis, repeat: i32, cron: &'static str) -> Command {
        Command::AddScheduledJob(AddScheduledJob {
            scheduler: JMS,
            job_id: Text::from_static(id),
            start_ms: 0,
            cron_entry: Text::from_static(cron),
            delay_ms: 0,
            period_ms: 10,
            repeat,
            payload: bytes::Bytes::new(),
            next_execution_ms: time,
        })
    }

    fn reschedule(id: &'static str, from: Millis, to: Millis) -> Command {
        Command::RescheduleJob(RescheduleJob {
            scheduler: JMS,
            job_id: Text::from_static(id),
            execution_ms: from,
            next_execution_ms: to,
            rescheduled_count: 1,
        })
    }

    fn remove(id: &'static str, time: Option<Millis>) -> Command {
        let job_id = Text::from_static(id);
        Command::RemoveScheduledJob(RemoveScheduledJob { scheduler: JMS, job_id, next_execution_ms: time })
    }

    fn remove_range(start_ms: Millis, last_ms: Millis) -> Command {
        Command::RemoveScheduledJobs(RemoveScheduledJobs { scheduler: JMS, start_ms, last_ms })
    }

    /// After `commands`, records 0, 1, 2 ... of file 1, the jobs are these: id, time, repetitions left.
    #[track_caller]
    fn check(commands: &[Command], expected: &[(&str, Millis, i32)]) {
        let mut state = SchedulerState::new();
        for (at, command) in (0..).zip(commands) {
            state.apply(command, Location::new(1, at));
        }
        let jobs: Vec<_> =
            state.jobs("JMS").map(|job| (&*job.job_id, job.next_execution_ms, job.repeat)).collect();
        assert_eq!(jobs, expected);
        let jobs = &state.schedulers.get("JMS").cloned().unwrap_or_default();
        let times: usize = jobs.times.values().map(Vec::len).sum();
        assert_eq!(times, expected.len(), "the index by id is in step");
    }

    #[test]
    fn jobs_come_by_time_and_then_as_they_were_added() {
        check(
            &[add("b", 5, 0, ""), add("a", 5, 0, ""), add("c", 4, 0, "")],
            &[("c", 4, 0), ("b", 5, 0), ("a", 5, 0)],
        );
    }

    #[test]
    fn records_applied_twice_count_once() {
        let mut state = SchedulerState::new();
        let records = [add("a", 5, 3, ""), add("a", 5, 3, ""), reschedule("a", 5, 9), remove("a", Some(5))];
        let mut once = None;
        for _ in 0..2 {
            for (at, command) in (0..).zip(&records) {
                state.apply(command, Location::new(1, at));
            }
            assert_eq!(*once.get_or_insert_with(|| state.clone()), state);
        }
    }

    #[test]
    fn a_reschedule_uses_up_a_repetition_unless_there_is_a_cron_entry_or_no_end() {
        check(&[add("a", 5, 3, ""), reschedule("a", 5, 9)], &[("a", 9, 2)]);
        check(&[add("a", 5, 0, ""), reschedule("a", 5, 9)], &[("a", 9, 0)]);
        check(&[add("a", 5, -1, ""), reschedule("a", 5, 9)], &[("a", 9, -1)]);
        check(&[add("a", 5, 3, "* * * * *"), reschedule("a", 5, 9)], &[("a", 9, 3)]);
    }

    #[test]
    fn what_is_not_filed_under_the_named_time_stays() {
        check(&[add("a", 5, 3, ""), reschedule("a", 6, 9), remove("a", Some(6))], &[("a", 5, 3)]);
        check(&[add("a", 5, 3, ""), remove("a", Some(5))], &[]);
    }

    #[test]
    fn without_a_time_a_job_goes_wherever_it_is_and_its_neighbours_stay() {
        check(
            &[add("a", 5, 0, ""), add("b", 5, 0, ""), add("a", 7, 0, ""), remove("a", None)],
            &[("b", 5, 0)],
        );
    }

    #[test]
    fn a_range_has_both_its_ends() {
        let jobs = [add("a", 4, 0, ""), add("b", 5, 0, ""), add("c", 6, 0, ""), add("d", 7, 0, "")];
        let commands = |last| [&jobs[..], &[last]].concat();
        check(&commands(remove_range(5, 6)), &[("a", 4, 0), ("d", 7, 0)]);
        check(&commands(remove_range(Millis::MIN, Millis::MAX)), &[]);
        check(&commands(remove_range(6, 5)), &[("a", 4, 0), ("b", 5, 0), ("c", 6, 0), ("d", 7, 0)]);
        check(&commands(Command::DestroyScheduler { scheduler: JMS }), &[]);
    }
}
