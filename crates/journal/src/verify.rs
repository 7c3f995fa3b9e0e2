//! Every byte of every data file, for `store verify`. Changes nothing and needs no lock, but a journal that is being written
//! meanwhile looks torn.

use std::io;
use std::sync::Arc;

use kahawai_env::Files;
use kahawai_types::{Epoch, Location, Lsn};

use crate::format::Problem;
use crate::scan::{Catalog, Directory, EndKind, FileScan, Links, Step};
use crate::tail::{Evidence, Judgement, TailKind, examine, next_believable};
use crate::{Chain, KnownPositions};

/// One data file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileReport {
    /// N of `db-N.log`.
    pub id: u32,
    /// Length on disk.
    pub bytes: u64,
    /// End of its last good batch.
    pub used: u64,
    /// Good batches.
    pub batches: u64,
    /// Those of them that ActiveMQ wrote.
    pub foreign: u64,
    /// Those of them that nothing but their structure vouches for.
    pub unchecked: u64,
    /// User records in them, without stamps.
    pub records: u64,
    /// Newest epoch in it; 0 if none is ours.
    pub epoch: Epoch,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Confirmed data may be missing.
    Damage {
        /// Full name.
        file: String,
        /// Where it begins.
        at: Location,
        /// The next good batch in that file, if there is one.
        until: Option<Location>,
        /// What is wrong.
        problem: Problem,
        /// In the newest file: why it is no torn tail.
        evidence: Option<Evidence>,
    },
    /// A crash left this; the next start cuts it.
    TornTail {
        /// Full name.
        file: String,
        /// Where it begins.
        at: Location,
        /// Up to the last byte that is not zero.
        bytes: u64,
    },
    /// These file ids are missing: collected, or lost.
    Gap {
        /// First missing id.
        first: u32,
        /// Last missing id.
        last: u32,
    },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damage { file, at, until, problem, evidence } => {
                write!(f, "{file}: damaged at offset {}: {problem}", at.offset)?;
                if let Some(evidence) = evidence {
                    write!(f, "; no torn tail, because {evidence}")?;
                }
                match until {
                    Some(until) => write!(f, "; the next good batch is at offset {}", until.offset),
                    None => write!(f, "; nothing good follows in this file"),
                }
            }
            Self::TornTail { file, at, bytes } => {
                write!(
                    f,
                    "{file}: torn tail of {bytes} bytes at offset {}, which the next start cuts",
                    at.offset
                )
            }
            Self::Gap { first, last } => {
                write!(f, "db-{first}.log to db-{last}.log are missing, collected or lost")
            }
        }
    }
}

/// What [`verify`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    /// All data files, ascending, empty ones too.
    pub files: Vec<FileReport>,
    /// In order of position.
    pub findings: Vec<Finding>,
    /// End of the last good batch.
    pub end: Lsn,
    /// Chain at the end, as far as it could be followed.
    pub chain: Option<Chain>,
}

impl VerifyReport {
    /// No damage. Gaps are normal after collection, and a torn tail after a crash.
    pub fn is_sound(&self) -> bool {
        !self.findings.iter().any(|finding| matches!(finding, Finding::Damage { .. }))
    }
}

/// Walks every data file from file id `from` on, and goes on behind damage where that is possible.
pub fn verify(files: &Arc<dyn Files>, from: u32, known: KnownPositions) -> io::Result<VerifyReport> {
    let directory = Directory::list(files.clone())?;
    let ids: Vec<u32> = directory.ids.range(from..).copied().collect();
    let begins = directory.ids.first().is_none_or(|&first| from <= first);
    let mut links = if begins { Links::at_the_beginning() } else { Links::default() };
    let mut report = VerifyReport::default();
    let newest_used = newest_used(&directory, &ids)?;
    for (index, &id) in ids.iter().enumerate() {
        if let Some(before) =
            index.checked_sub(1).and_then(|before| ids.get(before)).filter(|&&before| before + 1 < id)
        {
            report.findings.push(Finding::Gap { first: before + 1, last: id - 1 });
            links.gap();
        }
        let sealed = newest_used.is_some_and(|newest| id < newest);
        verify_file(&directory, id, sealed, known, &mut links, &mut report)?;
    }
    report.chain = links.chain;
    Ok(report)
}

/// The last file that begins with a good batch: those behind it are untouched, or torn.
fn newest_used(directory: &Directory, ids: &[u32]) -> io::Result<Option<u32>> {
    for &id in ids.iter().rev() {
        let file = directory.open(id)?;
        let length = file.len()?;
        if matches!(FileScan::new(file, id, 0, length).step()?, Step::Batch(..)) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn verify_file(
    directory: &Directory,
    id: u32,
    sealed: bool,
    known: KnownPositions,
    links: &mut Links,
    report: &mut VerifyReport,
) -> io::Result<()> {
    let file = directory.open(id)?;
    let bytes = file.len()?;
    let mut this =
        FileReport { id, bytes, used: 0, batches: 0, foreign: 0, unchecked: 0, records: 0, epoch: Epoch(0) };
    let mut scan = FileScan::new(file.clone(), id, 0, bytes);
    loop {
        let at = scan.lsn();
        let problem = match scan.step()? {
            Step::Batch(batch, _) => {
                if let Err(problem) = links.follow(&batch, at) {
                    if !sealed && tail_finding(directory, &file, id, at, known, report)? {
                        break;
                    }
                    // The batch itself is good: go on from what it says.
                    let until = Some(at.location());
                    let file = directory.describe(id);
                    report.findings.push(Finding::Damage {
                        file,
                        at: at.location(),
                        until,
                        problem,
                        evidence: None,
                    });
                    *links = Links::default();
                    let _ = links.follow(&batch, at);
                }
                this.batches += 1;
                this.foreign += u64::from(batch.stamp.is_none());
                this.unchecked += u64::from(!batch.proven);
                this.records += u64::from(batch.records) - u64::from(batch.stamp.is_some());
                this.epoch = this.epoch.max(batch.epoch());
                this.used = scan.at;
                report.end = scan.lsn();
                continue;
            }
            Step::End(kind) => {
                let ours = links.newest_is_foreign == Some(false) && this.batches > 0;
                if sealed {
                    if !(ours && kind != EndKind::Mark) {
                        break;
                    }
                    Problem::NoEndMark
                } else {
                    tail_finding(directory, &file, id, at, known, report)?;
                    break;
                }
            }
            Step::Bad(_) if !sealed && tail_finding(directory, &file, id, at, known, report)? => break,
            Step::Bad(problem) => problem,
        };
        let until = next_believable(&file, at, bytes)?;
        report.findings.push(Finding::Damage {
            file: directory.describe(id),
            at: at.location(),
            until: until.map(Lsn::location),
            problem,
            evidence: None,
        });
        links.gap();
        let Some(until) = until else { break };
        scan.at = until.offset().into();
    }
    report.files.push(this);
    Ok(())
}

/// Judges the newest file's tail as opening would. `true` if it has nothing more to say about this file.
fn tail_finding(
    directory: &Directory,
    file: &Arc<dyn kahawai_env::File>,
    id: u32,
    at: Lsn,
    known: KnownPositions,
    report: &mut VerifyReport,
) -> io::Result<bool> {
    let tail = examine(file, id, Judgement { known, batches_behind_prove: true, later: None })?;
    if tail.end != at {
        // Behind damage that was reported already.
        return Ok(false);
    }
    match tail.kind {
        TailKind::Clean => {}
        TailKind::Torn { dropped_end, .. } => report.findings.push(Finding::TornTail {
            file: directory.describe(id),
            at: at.location(),
            bytes: dropped_end.saturating_sub(at.offset().into()),
        }),
        TailKind::Damaged { problem, evidence, .. } => {
            let until = next_believable(file, at, tail.file_bytes)?;
            report.findings.push(Finding::Damage {
                file: directory.describe(id),
                at: at.location(),
                until: until.map(Lsn::location),
                problem,
                evidence: Some(evidence),
            });
        }
    }
    Ok(true)
}
