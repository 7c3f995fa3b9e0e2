//! Names in `<path>/election`: `n-<boot, 32 hex digits>-<sequence>`. The lowest sequence holds the grant.

use kahawai_types::BootId;

/// What ZooKeeper appends its sequence to.
pub(crate) fn prefix(boot: BootId) -> String {
    format!("n-{boot}-")
}

/// The place that a name stands for; none if it is not one of ours.
pub(crate) fn sequence(name: &str) -> Option<u64> {
    let (boot, sequence) = name.strip_prefix("n-")?.split_once('-')?;
    let is_ours = boot.len() == 32 && boot.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_ours { sequence.parse().ok() } else { None }
}

/// The name that holds the grant.
pub(crate) fn lowest<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names.into_iter().filter_map(|name| Some((sequence(name)?, name))).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_sequence_is_first_whatever_the_process_is_called() {
        let a = format!("{}0000000012", prefix(BootId(u128::MAX)));
        let b = format!("{}0000000009", prefix(BootId(1)));
        // ZooKeeper writes what does not fit in ten digits with more.
        let c = format!("{}0000000002147483648", prefix(BootId(0)));
        assert_eq!(lowest([a.as_str(), &c, &b, "stranger", "n-1-0000000001"]), Some(b.as_str()));
        assert_eq!(lowest([a.as_str(), &c]), Some(a.as_str()));
        assert_eq!(lowest(["stranger"]), None);
    }
}
