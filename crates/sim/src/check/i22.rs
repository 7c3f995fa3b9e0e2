//! I22: files that were installed are those of the manifest.

use kahawai_kdbr::SyncManifest;
use kahawai_store::Identity;

use super::{key, last_before};
use crate::ctx::Ctx;

/// A manifest was put in place.
pub(crate) fn installed(ctx: &mut Ctx, index: usize, identity: &Identity, manifest: &SyncManifest) {
    ctx.oracle.counts.installed += 1;
    for file in &manifest.files {
        let end = kahawai_types::Location::new(file.id, u32::try_from(file.length).unwrap_or(u32::MAX)).lsn();
        let known = last_before(&ctx.oracle.committed, end);
        if let Some(known) = known
            && known.end == end
            && known.chain != file.end_chain
        {
            ctx.violate(format!(
                "I22: n{index} has installed a data file {} that is not what was committed",
                file.id
            ));
        }
    }
    // A primary that has just begun may know less than what was committed, and have deleted files by that.
    let until = manifest.commit.max(ctx.oracle.committed_end());
    ctx.oracle.installed.insert(key(index, identity), until);
    ctx.oracle.held.entry(key(index, identity)).or_default().is_new = true;
}
