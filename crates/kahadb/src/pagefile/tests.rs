use bytes::BytesMut;
use kahawai_message::Destination;
use kahawai_types::Location;

use super::testing::{Builder, PAGE, header, int, long, utf};
use super::*;

/// Page 0 of an index whose destinations tree has this root.
fn metadata(version: i32, destinations: i64) -> Vec<u8> {
    let mut page = [int(2), long(destinations)].concat();
    page.extend([vec![1], int(3), int(77)].concat());
    page.push(0);
    if version == 1 {
        return page;
    }
    page.push(0);
    page.extend(int(version));
    if version >= 5 {
        page.extend([vec![1], int(2), int(28)].concat());
        page.extend(int(11));
    }
    page
}

fn record(version: i32, offset: i32) -> Vec<u8> {
    let mut bytes = [int(1), int(offset)].concat();
    if version >= 6 {
        bytes.extend(int(300));
    }
    bytes
}

/// A stream of `HashSet<String>` as index version 3 has it.
fn string_set(members: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0xac, 0xed, 0, 5, 0x73, 0x72];
    bytes.extend(utf("java.util.HashSet"));
    bytes.extend(long(1));
    bytes.extend([3, 0, 0, 0x78, 0x70, 0x77, 12, 0, 0, 0, 16, 0, 0, 0, 0]);
    bytes.extend(int(members.len() as i32));
    for member in members {
        bytes.push(0x74);
        bytes.extend(utf(member));
    }
    bytes.push(0x78);
    [int(bytes.len() as i32), bytes].concat()
}

/// One topic `T` with messages 3 (default), 4 (high) and 5 (low; default before version 2), subscribed to as `c:s`, which
/// acknowledged up to 3.
fn index(version: i32) -> Builder {
    let mut pages = Builder::new();
    let message =
        |sequence: i64, id: &str| (long(sequence), [utf(id), record(version, sequence as i32)].concat());
    let mut default = vec![message(3, "m3")];
    if version < 2 {
        default.extend([message(4, "m4"), message(5, "m5")]);
    }
    let default = pages.leaf(&default);
    let locations: Vec<_> =
        (3..6).map(|sequence| (record(version, sequence), long(sequence.into()))).collect();
    let locations = pages.leaf(&locations);
    let ids = pages.leaf(&[(utf("m3"), long(3)), (utf("m4"), long(4)), (utf("m5"), long(5))]);
    let mut destination = [long(default), long(locations), long(ids), vec![1]].concat();
    let command = {
        let mut out = BytesMut::new();
        crate::command::encode_subscription(&Destination::topic("T"), "c:s", false, Some(b"info"), &mut out);
        // As the journal has it, without the type byte.
        out[1..].to_vec()
    };
    destination.extend(long(pages.leaf(&[(utf("c:s"), command)])));
    let tier = if version >= 3 { vec![4] } else { Vec::new() };
    destination.extend(long(pages.leaf(&[(utf("c:s"), [long(3), tier].concat())])));
    match version {
        ..3 => {}
        3 => {
            let entries = [(long(4), string_set(&["c:s", "x"])), (long(5), string_set(&["c:s"]))];
            destination.extend(long(pages.leaf(&entries)));
        }
        _ => {
            let set = [int(1), vec![1], long(4), long(6)].concat();
            destination.extend(long(pages.list(&[(utf("c:s"), set)])));
        }
    }
    if version >= 5 {
        destination.extend(long(pages.list(&[(utf("c:s"), [int(1), int(9)].concat())])));
    }
    if version >= 2 {
        let (low, high) = (pages.leaf(&[message(5, "m5")]), pages.leaf(&[message(4, "m4")]));
        destination.extend([long(low), long(high)].concat());
    }
    if version >= 7 {
        let numbers: Vec<u8> = [3, 900, 300, -300, 5].into_iter().flat_map(long).collect();
        destination.extend(long(pages.add(&[vec![1], numbers].concat())));
    }
    let destinations = pages.leaf(&[(utf("1:T"), destination)]);
    pages.put(0, &metadata(version, destinations));
    pages
}

#[test]
fn every_version_of_the_index_reads() {
    for version in 1..=7 {
        let data = index(version).finish(true);
        let import = Import::open(&data, None).unwrap();
        let meta = import.metadata();
        assert_eq!(meta.version, version);
        assert_eq!(meta.last_update, Some(Location::new(3, 77)));
        assert_eq!(meta.openwire_version, if version >= 5 { 11 } else { 6 });
        assert_eq!(meta.ack_map, (version >= 5).then(|| Location::new(2, 28)));
        let [topic] = &import.destinations().unwrap()[..] else { panic!() };
        assert_eq!(topic.destination, Destination::topic("T"));
        assert!(topic.is_topic());
        let messages: Vec<_> = import.messages(topic).map(Result::unwrap).collect();
        let order: Vec<_> = messages.iter().map(|message| message.sequence).collect();
        assert_eq!(order, if version >= 2 { [4, 3, 5] } else { [3, 4, 5] });
        assert!(messages.iter().all(|message| *message.message_key == *format!("m{}", message.sequence)));
        assert!(messages.iter().all(|message| message.record.size == (version >= 6).then_some(300)));
        let [subscription] = &import.subscriptions(topic).unwrap()[..] else { panic!() };
        assert_eq!(&*subscription.subscription.subscription_key, "c:s");
        assert_eq!(subscription.record, (version >= 5).then(|| Location::new(1, 9)));
        let tier = if version >= 3 { Tier::Default } else { Tier::High };
        assert_eq!(subscription.last_ack, Some(LastAck { sequence: 3, tier }));
        let pending = subscription.pending.ranges();
        assert_eq!(
            pending,
            if version < 3 {
                [(3, 5)]
            } else if version == 3 {
                [(4, 5)]
            } else {
                [(4, 6)]
            }
        );
        assert_eq!(import.next_sequence(topic).unwrap(), 6);
        assert_eq!(
            import.statistics(topic).unwrap().map(|statistics| statistics.messages),
            (version >= 7).then_some(3)
        );
    }
}

#[test]
fn a_version_that_does_not_exist_yet_is_refused() {
    let mut pages = index(7);
    pages.put(0, &metadata(8, 1));
    assert!(matches!(Import::open(&pages.finish(true), None), Err(PageError::Version { found: 8 })));
}

/// What reading one tree of longs, whose root is page 1, ends with.
#[track_caller]
fn check(pages: &Builder, expected: Result<usize, &str>) {
    let data = pages.finish(true);
    let file = PageFile::open(&data, None).unwrap();
    let entries: Result<Vec<(i64, i64)>, _> = Tree::new(&file, 7, 1).collect();
    match (&entries, expected) {
        (Ok(entries), Ok(count)) => assert_eq!(entries.len(), count),
        (Err(error), Err(text)) => assert_eq!(error.to_string(), text),
        _ => panic!("{entries:?}, expected {expected:?}"),
    }
}

fn pair(key: i64) -> (Vec<u8>, Vec<u8>) {
    (long(key), long(key))
}

#[test]
fn branches_and_long_nodes_are_walked_in_order() {
    let mut pages = Builder::new();
    let root = pages.reserve();
    let left = pages.leaf(&(0..40).map(pair).collect::<Vec<_>>());
    let right = pages.leaf(&(40..43).map(pair).collect::<Vec<_>>());
    pages.put(root, &Builder::branch(&[long(40)], &[left, right]));
    check(&pages, Ok(43));
}

#[test]
fn a_tree_that_comes_back_to_a_page_is_an_error() {
    let mut pages = Builder::new();
    let root = pages.reserve();
    pages.put(root, &Builder::branch(&[], &[root]));
    check(&pages, Err("page 1 is used twice"));
    let leaf = pages.leaf(&[pair(1)]);
    pages.put(root, &Builder::branch(&[long(2)], &[leaf, leaf]));
    check(&pages, Err("page 2 is used twice"));
}

#[test]
fn a_tree_deeper_than_any_is_an_error() {
    let mut pages = Builder::new();
    let first = pages.reserve();
    for page in first..first + 100 {
        let child = pages.reserve();
        pages.put(page, &Builder::branch(&[], &[child]));
    }
    check(&pages, Err("the tree is deeper than 64 levels at page 64"));
}

#[test]
fn keys_that_do_not_ascend_are_an_error_also_across_leaves() {
    let mut pages = Builder::new();
    pages.leaf(&[pair(1), pair(1)]);
    check(&pages, Err("the keys do not ascend at page 1"));
    let mut pages = Builder::new();
    let root = pages.reserve();
    let (left, right) = (pages.leaf(&[pair(5)]), pages.leaf(&[pair(4)]));
    pages.put(root, &Builder::branch(&[long(5)], &[left, right]));
    check(&pages, Err("the keys do not ascend at page 3"));
}

#[test]
fn references_to_nowhere_are_errors() {
    for (child, expected) in [
        (-1, "page -1 lies outside the file"),
        (2, "page 2 is free"),
        (3, "page 3 lies outside the file"),
        (i64::MAX, "page 9223372036854775807 lies outside the file"),
    ] {
        let mut pages = Builder::new();
        let root = pages.reserve();
        pages.reserve();
        pages.put(root, &Builder::branch(&[], &[child]));
        check(&pages, Err(expected));
    }
}

#[test]
fn counts_beyond_the_node_are_errors() {
    let mut pages = Builder::new();
    pages.add(&[0x7f, 0xff]);
    check(&pages, Err("malformed node at page 1"));
    let mut pages = Builder::new();
    pages.add(&[0xff, 0xff]);
    check(&pages, Err("malformed node at page 1"));
}

/// Two header copies, and the transaction of the one that counts.
#[track_caller]
fn check_header(first: &str, second: &str, expected: Option<i64>) {
    let data = [header(first), header(second)].concat();
    match PageFile::open(&data, None) {
        Ok(file) => assert_eq!(Some(file.header().last_tx_id), expected),
        Err(error) => assert!(expected.is_none() && matches!(error, PageError::Header), "{error}"),
    }
}

#[test]
fn of_two_whole_headers_that_differ_the_second_counts_and_of_one_whole_that_one() {
    let whole = |tx: i64, last: i64| format!("#c\nlastTxId={last}\nmetaDataTxId={tx}\npageSize=4096\n");
    check_header(&whole(1, 10), &whole(1, 11), Some(10));
    check_header(&whole(2, 10), &whole(1, 11), Some(11));
    // Upstream takes the half-written second here.
    check_header(&whole(2, 10), "#c\nlastTxId=11\nmetaDa", Some(10));
    check_header("#c\nlast", &whole(1, 11), Some(11));
    check_header("", "metaDataTxId=-1\npageSize=4096", None);
}

#[test]
fn a_page_size_that_cannot_be_is_an_error() {
    for size in ["0", "21", "1048577"] {
        let copy = header(&format!("metaDataTxId=1\npageSize={size}"));
        let data = [copy.clone(), copy].concat();
        assert!(matches!(PageFile::open(&data, None), Err(PageError::PageSize { .. })), "{size}");
    }
}

/// A redo file that replaces page 1 and adds page 5.
fn redo(pages: &[(i64, Vec<u8>)]) -> Vec<u8> {
    let images: Vec<u8> = pages.iter().flat_map(|(_, image)| image.clone()).collect();
    let sum = simd_adler32::adler32(&images.as_slice());
    let mut file = [long(9), long(sum.into()), int(pages.len() as i32)].concat();
    file.resize(4096, 0);
    for (page, image) in pages {
        file.extend(long(*page));
        file.extend(image);
    }
    file
}

#[test]
fn the_redo_file_stands_in_for_its_pages_only_if_it_is_whole_and_needed() {
    let mut old = Builder::new();
    old.leaf(&[pair(1)]);
    let mut new = Builder::new();
    let root = new.reserve();
    for _ in 0..3 {
        new.reserve();
    }
    let leaf = new.leaf(&[pair(1), pair(2)]);
    new.put(root, &Builder::branch(&[], &[leaf]));
    let new = new.finish(true);
    let image = |page: usize| new[4096 + page * PAGE..][..PAGE].to_vec();
    let redo = redo(&[(1, image(1)), (5, image(5))]);
    let check = |clean: bool, redo: Option<&Vec<u8>>, expected: Redo, count: usize| {
        let data = old.finish(clean);
        let file = PageFile::open(&data, redo.map(|redo| redo as _)).unwrap();
        assert_eq!(file.redo(), expected);
        assert_eq!(Tree::<i64, i64>::new(&file, 7, 1).map(Result::unwrap).count(), count);
    };
    check(true, Some(&redo), Redo::NotNeeded, 1);
    check(false, Some(&redo), Redo::Applied { pages: 2 }, 2);
    check(false, None, Redo::Missing, 1);
    for length in [0, 19, 4096, redo.len() - 1] {
        check(false, Some(&redo[..length].to_vec()), Redo::Unfinished, 1);
    }
    let mut torn = redo.clone();
    torn[4096 + 100] ^= 1;
    check(false, Some(&torn), Redo::Unfinished, 1);
}

#[test]
fn a_sequence_set_knows_its_members() {
    let mut set = SequenceSet::default();
    for sequence in [-2, 0, 1, 1, 2, 7] {
        set.push(sequence);
    }
    assert_eq!(set.ranges(), [(-2, -2), (0, 2), (7, 7)]);
    assert_eq!((set.count(), set.last()), (5, Some(7)));
    let members: Vec<i64> = (-5..10).filter(|&sequence| set.contains(sequence)).collect();
    assert_eq!(members, [-2, 0, 1, 2, 7]);
}
