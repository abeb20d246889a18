use super::*;
use crate::producer::crc;
use proptest::prelude::*;

/// A v2 batch with a right checksum. The payload is opaque.
#[derive(Clone, Debug)]
pub(in crate::producer) struct BatchBuilder {
    pub(in crate::producer) base_offset: i64,
    pub(in crate::producer) leader_epoch: i32,
    pub(in crate::producer) magic: i8,
    pub(in crate::producer) attributes: i16,
    pub(in crate::producer) last_offset_delta: i32,
    pub(in crate::producer) producer_id: i64,
    pub(in crate::producer) base_sequence: i32,
    pub(in crate::producer) payload: Vec<u8>,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder {
            base_offset: 0,
            leader_epoch: 0,
            magic: 2,
            attributes: 0,
            last_offset_delta: 0,
            producer_id: -1,
            base_sequence: -1,
            payload: b"records".to_vec(),
        }
    }
}

impl BatchBuilder {
    fn at(base_offset: i64, last_offset_delta: i32) -> BatchBuilder {
        BatchBuilder { base_offset, last_offset_delta, ..BatchBuilder::default() }
    }

    pub(in crate::producer) fn build(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(self.attributes.to_be_bytes());
        body.extend(self.last_offset_delta.to_be_bytes());
        body.extend(1_700_000_000_000_i64.to_be_bytes());
        body.extend(1_700_000_000_123_i64.to_be_bytes());
        body.extend(self.producer_id.to_be_bytes());
        body.extend(3_i16.to_be_bytes());
        body.extend(self.base_sequence.to_be_bytes());
        body.extend(self.last_offset_delta.wrapping_add(1).to_be_bytes());
        body.extend(&self.payload);
        let mut out = Vec::new();
        out.extend(self.base_offset.to_be_bytes());
        out.extend(i32::try_from(body.len() + 9).unwrap().to_be_bytes());
        out.extend(self.leader_epoch.to_be_bytes());
        out.extend(self.magic.to_be_bytes());
        out.extend(crc::checksum(&body).to_be_bytes());
        out.extend(body);
        out
    }
}

/// An entry of magic 0 or 1; its value is opaque.
fn legacy(offset: i64, magic: u8, attributes: u8, value: &[u8]) -> Vec<u8> {
    let mut body = vec![0xAA; 4];
    body.extend([magic, attributes]);
    if magic == 1 {
        body.extend(1_700_000_000_000_i64.to_be_bytes());
    }
    body.extend((-1_i32).to_be_bytes());
    body.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
    body.extend(value);
    let mut out = offset.to_be_bytes().to_vec();
    out.extend(i32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend(body);
    out
}

fn with_length(mut batch: Vec<u8>, length: i32) -> Vec<u8> {
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch
}

#[test]
fn peek_reads_every_field() {
    let batch = BatchBuilder {
        base_offset: 11,
        leader_epoch: 5,
        attributes: 0x10,
        last_offset_delta: 4,
        producer_id: 1 << 62,
        base_sequence: 9,
        ..BatchBuilder::default()
    };
    let bytes = batch.build();
    let header = peek(&bytes).unwrap();
    let expected = BatchHeader {
        base_offset: 11,
        length: 56,
        leader_epoch: 5,
        magic: 2,
        crc: crc::checksum(&bytes[21..]),
        attributes: 0x10,
        last_offset_delta: 4,
        base_timestamp: 1_700_000_000_000,
        max_timestamp: 1_700_000_000_123,
        producer_id: 1 << 62,
        producer_epoch: 3,
        base_sequence: 9,
        count: 5,
    };
    assert_eq!(header, expected);
    assert!(header.is_transactional() && !header.is_control());
    assert!(peek(&BatchBuilder { attributes: 0x20, ..batch }.build()).unwrap().is_control());
}

#[test]
fn peek_refuses_what_is_no_batch() {
    let good = BatchBuilder::default().build();
    let size = good.len();
    let cases = [
        (Vec::new(), BatchError::Incomplete),
        (good[..60].to_vec(), BatchError::Incomplete),
        (good[..size - 1].to_vec(), BatchError::Incomplete),
        (BatchBuilder { magic: 1, ..BatchBuilder::default() }.build(), BatchError::Magic(1)),
        (BatchBuilder { magic: 3, ..BatchBuilder::default() }.build(), BatchError::Magic(3)),
        (with_length(good.clone(), -1), BatchError::Length(-1)),
        (with_length(good.clone(), 48), BatchError::Length(48)),
        (with_length(good.clone(), i32::MAX), BatchError::Incomplete),
    ];
    for (bytes, expected) in cases {
        assert_eq!(peek(&bytes), Err(expected), "{} bytes", bytes.len());
    }
    assert!(
        peek(&[&good[..], &[1, 2, 3]].concat()).is_ok(),
        "brokers ignore a partial batch behind the first"
    );
}

#[test]
fn last_sequence_wraps_inside_a_batch() {
    let cases = [
        (0, 0, 0),
        (10, 4, 14),
        (i32::MAX - 1, 1, i32::MAX),
        (i32::MAX, 0, i32::MAX),
        (i32::MAX, 1, 0),
        (i32::MAX - 1, 3, 1),
        (i32::MAX, i32::MAX, i32::MAX - 1),
        (-1, 5, -1),
    ];
    for (base_sequence, last_offset_delta, last) in cases {
        let batch =
            BatchBuilder { base_sequence, last_offset_delta, producer_id: 1, ..BatchBuilder::default() };
        assert_eq!(
            peek(&batch.build()).unwrap().last_sequence(),
            last,
            "{base_sequence} + {last_offset_delta}"
        );
    }
}

#[test]
fn translation_patches_offsets_and_epochs_and_keeps_checksums() {
    let partial = BatchBuilder::at(30, 0).build();
    let partial = &partial[..40];
    let parts = [
        BatchBuilder { leader_epoch: 4, ..BatchBuilder::at(10, 4) }.build(),
        BatchBuilder { leader_epoch: -1, ..BatchBuilder::at(15, 0) }.build(),
        legacy(16, 1, 0, b"one"),
        legacy(19, 1, 2, b"wrapper"),
        legacy(20, 0, 0, b"zero"),
    ];
    let mut records = [&parts.concat()[..], partial].concat();
    let done = translate_fetched(&mut records, 1_000, |e| e + 5_000).unwrap();
    let whole = records.len() - partial.len();
    let expected = Translated {
        first: Some(VirtualOffset(1_010)),
        end: Some(VirtualOffset(1_021)),
        batches: 5,
        bytes: whole,
    };
    assert_eq!(done, expected);
    assert_eq!(&records[whole..], partial);

    let after: Vec<_> = Batches::new(&records).collect::<Result<_, _>>().unwrap();
    assert_eq!(after.iter().map(|b| b.base_offset).collect::<Vec<_>>(), [1_010, 1_015, 1_016, 1_019, 1_020]);
    let epochs = after[..2].iter().map(|b| peek(b.bytes).unwrap().leader_epoch);
    assert_eq!(epochs.collect::<Vec<_>>(), [5_004, -1]);
    for (old, new) in parts.iter().zip(&after) {
        assert_eq!(old[16..], new.bytes[16..], "checksum and content");
    }
    assert_eq!(after[2].bytes[8..16], parts[2][8..16], "magic 1 has its CRC where v2 has the epoch");
}

#[test]
fn translation_of_nothing_complete_changes_nothing() {
    let batch = BatchBuilder::at(7, 2).build();
    for len in [0, 1, 8, 12, 16, 17, 60, 61, batch.len() - 1] {
        let mut records = batch[..len].to_vec();
        assert_eq!(translate_fetched(&mut records, 5, |e| e + 1), Ok(Translated::default()), "{len}");
        assert_eq!(records, batch[..len]);
    }
}

#[test]
fn translation_refuses_what_it_cannot_number() {
    let base = |b| BatchBuilder::at(b, 0).build();
    let cases = [
        (base(5), -6, BatchError::Shift { offset: 5, shift: -6 }),
        (base(5), i64::MAX, BatchError::Shift { offset: 5, shift: i64::MAX }),
        (base(5), i64::MAX - 5, BatchError::Shift { offset: 6, shift: i64::MAX - 5 }),
        (base(-1), 0, BatchError::Offsets { base: -1, delta: 0 }),
        (base(i64::MAX), 0, BatchError::Offsets { base: i64::MAX, delta: 0 }),
        (BatchBuilder::at(0, -1).build(), 0, BatchError::Offsets { base: 0, delta: -1 }),
        (BatchBuilder::at(i64::MAX - 1, 9).build(), 0, BatchError::Offsets { base: i64::MAX - 1, delta: 9 }),
        (with_length(base(0), 48), 0, BatchError::Length(48)),
        (with_length(base(0), i32::MIN), 0, BatchError::Length(i32::MIN)),
        (with_length(legacy(0, 1, 0, b""), 13), 0, BatchError::Length(13)),
        (BatchBuilder { magic: -1, ..BatchBuilder::default() }.build(), 0, BatchError::Magic(-1)),
        (legacy(3, 0, 1, b"inner offsets are absolute"), 1, BatchError::CompressedMagic0(3)),
    ];
    for (mut records, shift, expected) in cases {
        assert_eq!(translate_fetched(&mut records, shift, |e| e), Err(expected));
    }
    assert!(translate_fetched(&mut legacy(3, 0, 1, b"stays"), 0, |e| e).is_ok());
    assert!(translate_fetched(&mut base(5), i64::MAX - 6, |e| e).is_ok());
}

#[test]
fn iteration_ends_after_an_error() {
    let records = [BatchBuilder::at(0, 0).build(), with_length(BatchBuilder::at(1, 0).build(), 3)].concat();
    let mut batches = Batches::new(&records);
    assert!(batches.next().unwrap().is_ok());
    assert_eq!(batches.next(), Some(Err(BatchError::Length(3))));
    assert_eq!(batches.next(), None);
    assert!(batches.rest().is_empty());
}

#[test]
fn an_era_is_cut_at_its_native_end() {
    let (a, b) = (BatchBuilder::at(10, 4).build(), BatchBuilder::at(15, 4).build());
    let both = [&a[..], &b[..]].concat();
    let tail = |len: usize| [&a[..], &b[..len]].concat();
    let era = |len| Cut { len, end: CutEnd::Era };
    let all = |len| Cut { len, end: CutEnd::Records };
    let spanning =
        |len, base_offset, last_offset| Cut { len, end: CutEnd::Spanning { base_offset, last_offset } };
    let cases = [
        (Vec::new(), 15, all(0)),
        (both.clone(), 20, all(both.len())),
        (both.clone(), 19, spanning(a.len(), 15, 19)),
        (both.clone(), 15, era(a.len())),
        (both.clone(), 14, spanning(0, 10, 14)),
        (both, 10, era(0)),
        // A tail of the next era goes; one of this era, or one too short to tell, stays.
        (tail(40), 15, era(a.len())),
        (tail(8), 15, era(a.len())),
        (tail(7), 15, all(a.len() + 7)),
        (tail(40), 16, all(a.len() + 40)),
        (legacy(14, 1, 0, b"x"), 15, all(legacy(14, 1, 0, b"x").len())),
        (legacy(15, 1, 0, b"x"), 15, era(0)),
    ];
    for (records, native_end, expected) in cases {
        assert_eq!(cut_at(&records, native_end), Ok(expected), "{} bytes, end {native_end}", records.len());
    }
    assert_eq!(cut_at(&with_length(a.clone(), -7), 15), Err(BatchError::Length(-7)));
    let bad_behind = [&a[..], &with_length(b.clone(), 5)[..]].concat();
    assert_eq!(cut_at(&bad_behind, 15), Err(BatchError::Length(5)));
}

fn runs() -> impl Strategy<Value = (Vec<(i64, i32)>, usize)> {
    let step = (0_i64..3, 0_i32..5);
    (proptest::collection::vec(step, 1..12), 0_usize..70).prop_map(|(steps, tail)| {
        let mut next = 0;
        let batches = steps.into_iter().map(|(hole, delta)| {
            let base = next + hole;
            next = base + i64::from(delta) + 1;
            (base, delta)
        });
        (batches.collect(), tail)
    })
}

proptest! {
    #[test]
    fn cut_and_translation_keep_exactly_the_eras_batches((batches, tail) in runs(), at in 0_usize..12) {
        let mut records = Vec::new();
        for &(base, delta) in &batches {
            records.extend(BatchBuilder::at(base, delta).build());
        }
        let whole = records.len();
        records.extend(&BatchBuilder::at(1_000, 0).build()[..tail.min(60)]);
        let kept = &batches[..at.min(batches.len())];
        let native_end = kept.last().map_or(batches[0].0, |&(base, delta)| base + i64::from(delta) + 1);

        let cut = cut_at(&records, native_end).unwrap();
        let spanning = matches!(cut.end, CutEnd::Spanning { .. });
        prop_assert!(!spanning);
        prop_assert!(kept.len() == batches.len() || cut.end == CutEnd::Era);
        prop_assert!(cut.len <= whole || cut.end == CutEnd::Records);
        let mut part = records[..cut.len].to_vec();
        let done = translate_fetched(&mut part, 500, |e| e + 9).unwrap();
        prop_assert_eq!(done.batches, kept.len());
        let seen: Vec<_> = Batches::new(&part).map(|b| b.unwrap()).map(|b| (b.base_offset - 500, b.last_offset - 500)).collect();
        let wanted: Vec<_> = kept.iter().map(|&(base, delta)| (base, base + i64::from(delta))).collect();
        prop_assert_eq!(seen, wanted);
        prop_assert_eq!(done.end, kept.last().map(|_| VirtualOffset(native_end + 500)));
    }

    #[test]
    fn hostile_bytes_never_panic(
        mut records in proptest::collection::vec(any::<u8>(), 0..400),
        overwrite in proptest::option::of((0_i32..200, 0_u8..4)),
        shift: i64,
        end: i64,
    ) {
        // Mostly plausible lengths and magics, so that more than the first check is reached.
        if let Some((length, magic)) = overwrite.filter(|_| records.len() > MAGIC_AT) {
            records[8..12].copy_from_slice(&length.to_be_bytes());
            records[MAGIC_AT] = magic;
        }
        let _ = peek(&records).map(|h| h.last_sequence());
        if let Ok(cut) = cut_at(&records, end) {
            prop_assert!(cut.len <= records.len());
        }
        let walked: usize = Batches::new(&records).flatten().map(|b| b.bytes.len()).sum();
        prop_assert!(walked <= records.len());
        let len = records.len();
        if let Ok(done) = translate_fetched(&mut records, shift, |e| e.wrapping_add(1)) {
            prop_assert_eq!(done.bytes, walked);
        }
        prop_assert_eq!(records.len(), len);
    }
}
