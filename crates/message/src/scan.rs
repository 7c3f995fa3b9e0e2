//! Steps over loosely encoded fields without reading them: for indexes, which want few fields of many messages, and for
//! objects that we keep without looking inside.

use kahawai_wire::WireError;

use crate::{StoredError, loose::MESSAGE_ID};

/// Objects inside objects inside a message; real ones go two deep.
const OBJECT_DEPTH_MAX: usize = 16;

/// What every message has (`kahadb-format.md` §5). Letters as in [`shape`].
const MESSAGE: &str = "iboooooosisblbolsyyoobialsbballb";

/// The fields of an OpenWire version 11 object by its type number, a letter each, from `openwire-commands.json`:
/// `b` byte or boolean, `h` short, `i` int, `l` long, `s` string, `y` bytes, `m` the 8 bytes of the magic, `o` object,
/// `a` array of objects, `t` throwable.
const fn shape(type_number: u8) -> Option<&'static str> {
    Some(match type_number {
        1 => "miy",                                  // WireFormatInfo
        2 => "ibosasbbbbblss",                       // BrokerInfo
        3 => "ibosssabbbbbs",                        // ConnectionInfo
        4 => "ibo",                                  // SessionInfo
        5 => "iboboiibsssbbbbaobbba",                // ConsumerInfo
        6 => "ibooabi",                              // ProducerInfo
        7 => "iboob",                                // TransactionInfo
        8 => "iboobla",                              // DestinationInfo
        9 => "iboss",                                // RemoveSubscriptionInfo
        10 | 11 | 15 => "ib",                        // KeepAliveInfo, ShutdownInfo, FlushCommand
        12 => "ibol",                                // RemoveInfo
        14 => "ibs",                                 // ControlCommand
        16 => "ibto",                                // ConnectionError
        17 => "iboboibbb",                           // ConsumerControl
        18 => "ibbbbbbssby",                         // ConnectionControl
        19 => "iboi",                                // ProducerAck
        20 => "iboolso",                             // MessagePull
        21 => "iboooi",                              // MessageDispatch
        22 => "ibooobooit",                          // MessageAck
        23..=28 => MESSAGE,                          // all message types but:
        29 => "iboooooosisblbolsyyoobialsbballbssb", // ActiveMQBlobMessage
        30 => "ibi",                                 // Response
        31 => "ibit",                                // ExceptionResponse
        32 => "ibio",                                // DataResponse
        33 => "ibia",                                // DataArrayResponse
        34 | 65 => "ibii",                           // IntegerResponse, ReplayCommand
        40 => "ss",                                  // DiscoveryEvent
        50 => "oolsso",                              // JournalTopicAck
        52 => "oo",                                  // JournalQueueAck
        53 | 100..=103 | 120 | 124 => "s",           // JournalTrace, destinations, ConnectionId, BrokerId
        54 => "obb",                                 // JournalTransaction
        55 => "sossob",                              // SubscriptionInfo
        60 | 61 => "iy",                             // PartialCommand, LastPartialCommand
        90 => "iboolo",                              // MessageDispatchNotification
        91 => "oii",                                 // NetworkBridgeFilter
        92 => "ib",                                  // BrokerSubscriptionInfo
        110 => "soll",                               // MessageId
        111 => "lo",                                 // LocalTransactionId
        112 => "iyy",                                // XATransactionId
        121 => "sl",                                 // SessionId
        122 | 123 => "sll",                          // ConsumerId, ProducerId
        _ => return None,
    })
}

/// A position in bytes that are not ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan<'a> {
    input: &'a [u8],
    at: usize,
    /// Added to positions in errors: where `input` lies in what the caller reads.
    base: usize,
}

type Scanned<T> = Result<T, StoredError>;

impl<'a> Scan<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, base: 0 }
    }

    /// Scans a part that begins `base` bytes into what the caller reads.
    pub(crate) fn part(input: &'a [u8], base: usize) -> Self {
        Self { input, at: 0, base }
    }

    /// Bytes scanned so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    fn error_position(&self) -> usize {
        self.base + self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.input.len() - self.at
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Scanned<[u8; N]> {
        let found = self.input.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let &bytes = found.ok_or_else(|| self.short(N))?;
        self.at += N;
        Ok(bytes)
    }

    #[cold]
    fn short(&self, wanted: usize) -> StoredError {
        WireError::Short { at: self.error_position(), wanted, available: self.remaining() }.into()
    }

    pub(crate) fn take(&mut self, count: usize) -> Scanned<&'a [u8]> {
        let end = self.at.checked_add(count);
        let found = end.and_then(|end| self.input.get(self.at..end)).ok_or_else(|| self.short(count))?;
        self.at += count;
        Ok(found)
    }

    pub(crate) fn skip(&mut self, count: usize) -> Scanned<()> {
        self.take(count).map(drop)
    }

    pub(crate) fn u8(&mut self) -> Scanned<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn bool(&mut self) -> Scanned<bool> {
        Ok(self.u8()? != 0)
    }

    pub(crate) fn u16(&mut self) -> Scanned<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Scanned<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Scanned<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// A length or count that must not be negative.
    pub(crate) fn length(&mut self) -> Scanned<usize> {
        let at = self.error_position();
        let length = self.i32()?;
        usize::try_from(length).map_err(|_| WireError::Length { at, length: length.into() }.into())
    }

    pub(crate) fn skip_string(&mut self) -> Scanned<()> {
        if self.bool()? {
            let length = self.u16()?;
            self.skip(length.into())?;
        }
        Ok(())
    }

    pub(crate) fn skip_bytes(&mut self) -> Scanned<()> {
        if self.bool()? {
            let length = self.length()?;
            self.skip(length)?;
        }
        Ok(())
    }

    pub(crate) fn skip_throwable(&mut self) -> Scanned<()> {
        if self.bool()? {
            self.skip_string()?;
            self.skip_string()?;
        }
        Ok(())
    }

    pub(crate) fn skip_object(&mut self) -> Scanned<()> {
        self.skip_object_at(0)
    }

    /// Steps over a message id: its `brokerSequenceId`, and where that stands.
    pub(crate) fn message_id_broker_sequence(&mut self) -> Scanned<Option<(i64, usize)>> {
        if !self.bool()? {
            return Ok(None);
        }
        let at = self.error_position();
        let type_number = self.u8()?;
        if type_number != MESSAGE_ID {
            return Err(
                WireError::Unexpected { what: "message id type", value: type_number.into(), at }.into()
            );
        }
        self.skip_string()?; // textView
        self.skip_object()?; // producerId
        self.skip(8)?; // producerSequenceId
        let at = self.at;
        Ok(Some((self.i64()?, at)))
    }

    pub(crate) fn skip_array(&mut self) -> Scanned<()> {
        self.skip_array_at(0)
    }

    fn skip_object_at(&mut self, depth: usize) -> Scanned<()> {
        if !self.bool()? {
            return Ok(());
        }
        if depth == OBJECT_DEPTH_MAX {
            return Err(StoredError::Limit {
                what: "object depth",
                found: depth + 1,
                limit: OBJECT_DEPTH_MAX,
            });
        }
        let at = self.error_position();
        let type_number = self.u8()?;
        let Some(fields) = shape(type_number) else {
            return Err(WireError::Unexpected { what: "object type", value: type_number.into(), at }.into());
        };
        for field in fields.bytes() {
            match field {
                b'b' => self.skip(1)?,
                b'h' => self.skip(2)?,
                b'i' => self.skip(4)?,
                b'l' | b'm' => self.skip(8)?,
                b's' => self.skip_string()?,
                b'y' => self.skip_bytes()?,
                b't' => self.skip_throwable()?,
                b'a' => self.skip_array_at(depth + 1)?,
                _ => self.skip_object_at(depth + 1)?,
            }
        }
        Ok(())
    }

    fn skip_array_at(&mut self, depth: usize) -> Scanned<()> {
        if self.bool()? {
            let at = self.error_position();
            let count = self.array().map(i16::from_be_bytes)?;
            if count < 0 {
                return Err(WireError::Length { at, length: count.into() }.into());
            }
            for _ in 0..count {
                self.skip_object_at(depth)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_field_is_stepped_over() {
        // An array of two: an absent object, and an exception response with a throwable.
        let bytes = b"\x01\0\x02\0\x01\x1f\0\0\0\x01\0\0\0\0\x02\x01\x01\0\x01C\0";
        let mut scan = Scan::new(bytes);
        assert_eq!(scan.skip_array(), Ok(()));
        assert_eq!(scan.remaining(), 0);
        for cut in 0..bytes.len() {
            assert!(Scan::new(&bytes[..cut]).skip_array().is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn objects_nest_only_so_deep() {
        // Data responses, each with the next as its data.
        let nested = |depth: usize| [b"\x01\x20\0\0\0\0\0\0\0\0\0".repeat(depth), vec![0]].concat();
        assert_eq!(Scan::new(&nested(OBJECT_DEPTH_MAX)).skip_object(), Ok(()));
        assert!(matches!(
            Scan::new(&nested(OBJECT_DEPTH_MAX + 1)).skip_object(),
            Err(StoredError::Limit { what: "object depth", .. })
        ));
    }

    #[test]
    fn unknown_objects_and_negative_counts_are_refused() {
        assert!(Scan::new(b"\x01\x7f").skip_object().is_err());
        assert!(Scan::new(b"\x01\xff\xff").skip_array().is_err());
        assert!(Scan::new(b"\x01\xff\xff\xff\xff").skip_bytes().is_err());
    }
}
