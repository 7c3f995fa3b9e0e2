//! Makes small page files of any version.

use bytes::{BufMut, BytesMut};

pub(crate) const PAGE: usize = 256;

/// A page file under construction; pages of 256 bytes.
#[derive(Clone, Default)]
pub(crate) struct Builder {
    pages: Vec<Vec<u8>>,
}

impl Builder {
    /// Page 0, reserved.
    pub(crate) fn new() -> Self {
        Self { pages: vec![vec![0; PAGE]] }
    }

    fn image(kind: u8, next: i64, data: &[u8]) -> Vec<u8> {
        let mut page = BytesMut::new();
        page.put_u8(kind);
        page.put_i64(7);
        page.put_i64(next);
        page.put_i32(0);
        page.extend_from_slice(data);
        page.resize(PAGE, 0xee);
        page.to_vec()
    }

    /// Puts `data` on as many pages as it needs, the first of which is `first`.
    pub(crate) fn put(&mut self, first: i64, data: &[u8]) {
        let (head, rest) = data.split_at(data.len().min(PAGE - 21));
        let image = if rest.is_empty() {
            Self::image(2, head.len() as i64 + 21, head)
        } else {
            Self::image(1, self.add(rest), head)
        };
        self.pages[first as usize] = image;
    }

    /// The same on new pages.
    pub(crate) fn add(&mut self, data: &[u8]) -> i64 {
        let page = self.reserve();
        self.put(page, data);
        page
    }

    pub(crate) fn reserve(&mut self) -> i64 {
        self.pages.push(vec![0; PAGE]);
        self.pages.len() as i64 - 1
    }

    /// A leaf of a tree: keys and values already written.
    pub(crate) fn leaf(&mut self, entries: &[(Vec<u8>, Vec<u8>)]) -> i64 {
        let mut out = BytesMut::new();
        out.put_i16(entries.len() as i16);
        entries.iter().for_each(|(key, _)| out.extend_from_slice(key));
        out.put_u8(0);
        entries.iter().for_each(|(_, value)| out.extend_from_slice(value));
        out.put_i64(-1);
        self.add(&out)
    }

    /// The bytes of a branch.
    pub(crate) fn branch(keys: &[Vec<u8>], children: &[i64]) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_i16(keys.len() as i16);
        keys.iter().for_each(|key| out.extend_from_slice(key));
        out.put_u8(1);
        children.iter().for_each(|&child| out.put_i64(child));
        out.to_vec()
    }

    /// A list of one node.
    pub(crate) fn list(&mut self, entries: &[(Vec<u8>, Vec<u8>)]) -> i64 {
        let mut out = BytesMut::new();
        out.put_i64(-1);
        out.put_i16(entries.len() as i16);
        for (key, value) in entries {
            out.extend_from_slice(key);
            out.extend_from_slice(value);
        }
        self.add(&out)
    }

    /// The file.
    pub(crate) fn finish(&self, clean: bool) -> Vec<u8> {
        let mut file = header(&format!("metaDataTxId=3\npageSize={PAGE}\ncleanShutdown={clean}\n"));
        file.extend(header(&format!("metaDataTxId=3\npageSize={PAGE}\ncleanShutdown={clean}\n")));
        file.extend(self.pages.concat());
        file
    }
}

/// One of the two copies.
pub(crate) fn header(text: &str) -> Vec<u8> {
    let mut copy = text.as_bytes().to_vec();
    copy.resize(2048, b' ');
    copy
}

pub(crate) fn utf(text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    assert!(kahawai_wire::put_mutf8_u16(text, &mut out));
    out.to_vec()
}

pub(crate) fn long(value: i64) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

pub(crate) fn int(value: i32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}
