//! CRC-32C of record batches, and its update when only header bytes change.
//!
//! The checksum is linear: a changed header changes it by `shift(crc(old) ⊕ crc(new), bytes behind the header)`, whatever
//! these bytes are. So nothing of the payload is read, and a payload that was damaged before stays detectably damaged.

use super::batch::{self, BatchError};

/// CRC-32C polynomial, bit-reversed: the highest bit is the coefficient of x⁰.
const POLYNOMIAL: u32 = 0x82F6_3B78;
const ONE: u32 = 1 << 31;

/// `x^(8·2^k)` mod the polynomial: the factor that moves a checksum over `2^k` bytes.
const BYTE_SHIFTS: [u32; 64] = byte_shifts();

/// CRC-32C (Castagnoli) of `bytes`.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The checksum of a message after a run of `N` bytes in it was replaced; `rest_len` bytes stand behind the run.
#[must_use]
pub fn update_header_crc<const N: usize>(
    old_crc: u32,
    old_header: &[u8; N],
    new_header: &[u8; N],
    rest_len: usize,
) -> u32 {
    old_crc ^ shift(checksum(old_header) ^ checksum(new_header), rest_len)
}

/// Puts another producer into the first batch of `records` and corrects its checksum. A produce request carries one batch
/// per partition; brokers ignore an incomplete tail behind it, and so does this.
///
/// # Errors
/// As [`batch::peek`]; the bytes are unchanged then.
pub fn rewrite_producer(records: &mut [u8], pid: i64, epoch: i16) -> Result<(), BatchError> {
    let header = batch::peek(records)?;
    let size = header.size()?;
    let rest = size.checked_sub(batch::PRODUCER_ID_AT + 10).ok_or(BatchError::Length(header.length))?;
    let bytes = |pid: i64, epoch: i16| {
        let mut both = [0; 10];
        both[..8].copy_from_slice(&pid.to_be_bytes());
        both[8..].copy_from_slice(&epoch.to_be_bytes());
        both
    };
    let (old, new) = (bytes(header.producer_id, header.producer_epoch), bytes(pid, epoch));
    let crc = update_header_crc(header.crc, &old, &new, rest);
    batch::put(records, batch::PRODUCER_ID_AT, new)?;
    batch::put(records, batch::CRC_AT, crc.to_be_bytes())
}

/// The effect of a difference on the checksum when `len` bytes follow it.
fn shift(mut crc: u32, mut len: usize) -> u32 {
    for factor in BYTE_SHIFTS {
        if len == 0 {
            break;
        }
        if len & 1 == 1 {
            crc = multiply(factor, crc);
        }
        len >>= 1;
    }
    crc
}

const fn byte_shifts() -> [u32; 64] {
    let mut out = [0; 64];
    let mut power = ONE >> 8;
    let mut k = 0;
    while k < out.len() {
        out[k] = power;
        power = multiply(power, power);
        k += 1;
    }
    out
}

/// The product of two polynomials, reduced.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { (b >> 1) ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::BatchBuilder;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_vector() {
        assert_eq!(checksum(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn shift_agrees_with_the_crate_over_lengths_that_use_every_low_bit() {
        for len in [0, 1, 2, 3, 7, 255, 256, 65_535, 1 << 20, (1 << 20) + 4_095] {
            let zeros = vec![0; len];
            let (a, b) = (b"abcdefgh", b"ABCDEFGh");
            let with = |head: &[u8]| checksum(&[head, &zeros].concat());
            assert_eq!(update_header_crc(with(a), a, b, len), with(b), "{len}");
        }
    }

    proptest! {
        #[test]
        fn update_equals_full_recompute(
            before in proptest::collection::vec(any::<u8>(), 0..64),
            old: [u8; 12],
            new: [u8; 12],
            rest in proptest::collection::vec(any::<u8>(), 0..3_000),
        ) {
            let full = |head: &[u8]| checksum(&[&before[..], head, &rest[..]].concat());
            prop_assert_eq!(update_header_crc(full(&old), &old, &new, rest.len()), full(&new));
        }

        #[test]
        fn r06_rewritten_batches_have_a_right_checksum_and_damaged_ones_keep_a_wrong_one(
            pid: i64,
            epoch: i16,
            payload in proptest::collection::vec(any::<u8>(), 0..3_000),
            tail in proptest::collection::vec(any::<u8>(), 0..12),
            damage in 1_u32..,
        ) {
            let good = BatchBuilder { producer_id: 77, payload, ..BatchBuilder::default() }.build();
            let size = good.len();
            let was = batch::peek(&good).unwrap().producer_epoch;
            let mut records = [&good[..], &tail[..]].concat();
            rewrite_producer(&mut records, pid, epoch).unwrap();
            let header = batch::peek(&records).unwrap();
            prop_assert_eq!((header.producer_id, header.producer_epoch), (pid, epoch));
            prop_assert_eq!(header.crc, checksum(&records[21..size]));
            prop_assert_eq!(&records[size..], &tail[..]);

            let mut bad = good.clone();
            let wrong = checksum(&good[21..]) ^ damage;
            bad[17..21].copy_from_slice(&wrong.to_be_bytes());
            rewrite_producer(&mut bad, pid, epoch).unwrap();
            prop_assert_ne!(batch::peek(&bad).unwrap().crc, checksum(&bad[21..]));

            rewrite_producer(&mut records, 77, was).unwrap();
            prop_assert_eq!(&records[..size], &good[..]);
        }

        #[test]
        fn hostile_bytes_never_panic_and_stay_unchanged_on_errors(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            pid: i64,
            epoch: i16,
        ) {
            let before = bytes.clone();
            if rewrite_producer(&mut bytes, pid, epoch).is_err() {
                prop_assert_eq!(bytes, before);
            }
        }
    }
}
