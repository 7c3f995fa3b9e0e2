//! Damaged data files: a sound copy comes from another node and takes their place, while everything goes on.
//!
//! ```text
//! scrub thread --Scrubbed--> mend --REPAIR_REQUEST--> the primary, then the others that are there
//!                            <--FILE_CHUNK ...-- replication/repair/db-N.log, checked, flushed, renamed
//! ```

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kahawai_env::{Files, PageBuffer};
use kahawai_journal::{Damage, Journal, Place, Scrubbed};
use kahawai_kdbr::{Frame, RepairRequest, Role, TransferStatus};
use kahawai_shipping::{begin_repair, discard_repairs, finish_repair};
use kahawai_types::Location;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::bulk::{SILENCE, write_chunk};
use super::net::{Connected, dial};
use super::{Present, Protection, Stage, credentials};
use crate::core::unpoisoned;
use crate::threads::retry_unreadable;

/// Before another attempt at a file that nobody could give.
const AGAIN: Duration = Duration::from_secs(30);
/// What a repair needs.
pub(super) struct Mending {
    pub(super) stage: Arc<Stage>,
    pub(super) files: Arc<dyn Files>,
    pub(super) journal: Journal,
    pub(super) protection: Protection,
}

impl Mending {
    /// Repairs what is found, until nobody looks any more.
    pub(super) async fn run(self, mut found: mpsc::UnboundedReceiver<Scrubbed>) {
        let files = Arc::clone(&self.files);
        if let Ok(Err(problem)) = spawn_blocking(move || discard_repairs(&files)).await {
            warn!(%problem, "what an earlier repair has left could not be removed");
        }
        let (mut damaged, mut come) = (BTreeMap::new(), Vec::new());
        loop {
            {
                // What comes meanwhile waits; that nobody looks any more does not.
                let mut repairing = pin!(self.all(&mut damaged));
                loop {
                    tokio::select! {
                        () = &mut repairing => break,
                        next = found.recv() => match next {
                            Some(finding) => come.push(finding),
                            None => return,
                        },
                    }
                }
            }
            if come.is_empty() {
                tokio::select! {
                    next = found.recv() => match next {
                        Some(finding) => come.push(finding),
                        None => return,
                    },
                    () = tokio::time::sleep(AGAIN), if !damaged.is_empty() => {}
                }
            }
            for finding in come.drain(..) {
                match finding {
                    Scrubbed::Damage(damage) => {
                        if !damaged.contains_key(&damage.file) {
                            error!(file = damage.file, problem = damage.problem, "a data file is damaged");
                        }
                        damaged.insert(damage.file, damage);
                    }
                    Scrubbed::Sound(file) => {
                        damaged.remove(&file);
                        info!(file, "a data file can be read again");
                        self.retry();
                    }
                }
            }
        }
    }

    /// Tries each of them.
    async fn all(&self, damaged: &mut BTreeMap<u32, Damage>) {
        let waiting: Vec<Damage> = damaged.values().cloned().collect();
        for damage in waiting {
            let Some(place) = damage.place else {
                let file = damage.file;
                if damage.is_sealed {
                    let advice = "where another node has everything: empty this node's directory and let it synchronise";
                    error!(file, advice, "it cannot be repaired: nothing says what should be in it");
                } else {
                    warn!(file, "it is written to still, and can be repaired once the next one is begun");
                }
                damaged.remove(&file);
                continue;
            };
            if self.one(place).await {
                damaged.remove(&damage.file);
            }
        }
    }

    /// `true` = it is sound again, or gone.
    async fn one(&self, place: Place) -> bool {
        let view = self.stage.election.view();
        let me = self.stage.me();
        let leader = view.record.and_then(|record| record.primary);
        let mut peers: Vec<_> = view.present.iter().filter(|other| other.store != me.store).collect();
        peers.sort_by_key(|other| leader.as_ref().is_none_or(|leader| leader.boot != other.boot));
        for peer in peers {
            match self.from(&peer.address, place).await {
                Ok(replaced) => {
                    if replaced {
                        info!(file = place.file, from = %peer.node, "a damaged data file was repaired");
                        self.retry();
                    }
                    return true;
                }
                Err(problem) => {
                    warn!(file = place.file, from = %peer.node, problem, "a damaged data file was not repaired");
                }
            }
        }
        false
    }

    async fn from(&self, address: &str, place: Place) -> Result<bool, String> {
        let credentials = credentials(&self.stage, self.protection.clone(), false);
        let text = |problem: super::net::NetError| problem.to_string();
        let Connected { mut reader, mut writer, .. } =
            dial(address, Role::Transfer, &credentials).await.map_err(text)?;
        let epoch = self.stage.identity().promised_epoch;
        let request = RepairRequest {
            epoch,
            request_id: 1,
            from: place.start(),
            to: Location::new(place.file + 1, 0).lsn(),
            chain_before: place.chain_before.0,
            chain_after: place.chain_after.0,
        };
        let sent = async {
            writer.send(&Frame::RepairRequest(request)).await?;
            writer.flush().await
        };
        sent.await.map_err(|problem| problem.to_string())?;
        let mut next = async || {
            let frame = tokio::time::timeout(SILENCE, reader.next()).await;
            match frame.map_err(|_| "silence".to_owned())?.map_err(text)? {
                Frame::Error(error) => Err(error.text),
                frame => Ok(frame),
            }
        };
        let response = match next().await? {
            Frame::RepairResponse(response) if response.status == TransferStatus::Ok => response,
            Frame::RepairResponse(response) => return Err(format!("it says {:?}", response.status)),
            other => return Err(format!("{} does not belong here", other.name())),
        };
        let sealed = place.sealed(response.length, response.first_epoch);
        let files = Arc::clone(&self.files);
        let incoming = spawn_blocking(move || begin_repair(&files, &sealed)).await.map_err(over)??;
        let mut memory = PageBuffer::default();
        let mut at = 0;
        while at < sealed.length {
            let chunk = match next().await? {
                Frame::FileChunk(chunk) => chunk,
                other => return Err(format!("{} does not belong here", other.name())),
            };
            let length = chunk.bytes.len() as u64;
            if chunk.offset != at || length == 0 || length > sealed.length - at {
                return Err(format!("{length} bytes at {} came, not those at {at}", chunk.offset));
            }
            at += length;
            write_chunk(&incoming, chunk, &mut memory).await.map_err(over)?;
        }
        let (files, journal) = (Arc::clone(&self.files), self.journal.clone());
        let finished = spawn_blocking(move || {
            incoming.flush().map_err(over)?;
            finish_repair(&files, &journal, &sealed)
        });
        finished.await.map_err(over)?
    }

    /// What could not be read is delivered again. Who has read the old file a moment ago and sets more aside, suspects it again.
    fn retry(&self) {
        if let Present::Leading { reign, .. } = &*unpoisoned(&self.stage.present) {
            retry_unreadable(&reign.shared);
        }
    }
}

fn over(problem: impl std::fmt::Display) -> String {
    problem.to_string()
}
