//! Decimal numbers into a buffer, without a text in between.

use bytes::BytesMut;

/// Bytes that [`put_decimal`] appends.
pub(crate) const fn decimal_len(value: i64) -> usize {
    let magnitude = value.unsigned_abs();
    let digits = match magnitude.checked_ilog10() {
        Some(power) => power as usize + 1,
        None => 1,
    };
    digits + if value < 0 { 1 } else { 0 }
}

/// Appends `value` as `to_string` would write it.
pub(crate) fn put_decimal(value: i64, out: &mut BytesMut) {
    // 19 digits and a sign are the longest.
    let mut buffer = [b'-'; 20];
    let length = decimal_len(value);
    let digits = length - usize::from(value < 0);
    let mut rest = value.unsigned_abs();
    for byte in buffer.iter_mut().take(length).rev().take(digits) {
        *byte = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(buffer.get(..length).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_rust_writes_them() {
        for value in [0, 1, -1, 9, 10, -10, 99, 100, 12_345, i64::MAX, i64::MIN, i64::MIN + 1] {
            let mut out = BytesMut::new();
            put_decimal(value, &mut out);
            assert_eq!(out, value.to_string().as_bytes());
            assert_eq!(out.len(), decimal_len(value));
        }
    }
}
