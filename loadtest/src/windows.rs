//! Pauses around given moments, such as flips: the longest wait a client saw there.

use crate::history::{Entry, Event};

/// What one writer or reader saw in one window; `None` if it has no event to tell by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct WindowGap {
    pub start_us: i64,
    pub end_us: i64,
    /// Longest wait of one record: acknowledgement time − sent time, or, of a reader, delivery time − sent time.
    /// Counts every record whose wait overlaps the window.
    pub longest_latency_us: Option<i64>,
    /// Longest time between two acknowledgements (or deliveries) that overlaps the window. If the last one is
    /// before the window's end, the rest of the window counts too.
    pub longest_gap_us: Option<i64>,
}

/// Measures each window over one history; `events` in file order.
#[must_use]
pub fn gap_in_windows(events: &[Entry], windows: &[(i64, i64)]) -> Vec<WindowGap> {
    let samples: Vec<Sample> = events.iter().filter_map(Sample::of).collect();
    windows.iter().map(|&(start_us, end_us)| measure(&samples, start_us, end_us)).collect()
}

/// One acknowledged or delivered record.
struct Sample {
    at_us: i64,
    sent_us: Option<i64>,
}

impl Sample {
    fn of(entry: &Entry) -> Option<Self> {
        match entry.event {
            Event::Ok { sent_us, .. } => Some(Self { at_us: entry.at_us, sent_us: Some(sent_us) }),
            Event::Poll { sent_us, .. } => Some(Self { at_us: entry.at_us, sent_us }),
            _ => None,
        }
    }
}

fn measure(samples: &[Sample], start_us: i64, end_us: i64) -> WindowGap {
    let overlaps = |from: i64, to: i64| from <= end_us && to >= start_us;
    let latencies = samples.iter().filter_map(|sample| {
        let sent_us = sample.sent_us?;
        overlaps(sent_us, sample.at_us).then_some(sample.at_us - sent_us)
    });
    let longest_latency_us = latencies.max();
    let between = samples.windows(2).filter_map(|pair| match pair {
        [first, second] if overlaps(first.at_us, second.at_us) => Some(second.at_us - first.at_us),
        _ => None,
    });
    let open = samples.last().filter(|last| last.at_us < end_us).map(|last| end_us - last.at_us);
    let longest_gap_us = between.chain(open).max();
    WindowGap { start_us, end_us, longest_latency_us, longest_gap_us }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Part;

    fn ack(sent_us: i64, at_us: i64) -> Entry {
        let part = Part { topic: 0, number: 0 };
        Entry { at_us, event: Event::Ok { part, seq: 0, offset: 0, sent_us } }
    }

    #[test]
    fn a_wait_that_spans_a_window_belongs_to_it_and_others_do_not() {
        let events = [ack(0, 5), ack(10, 14), ack(20, 90), ack(91, 93), ack(100, 101)];
        let gaps = gap_in_windows(&events, &[(30, 40), (95, 98), (0, 10)]);
        let found: Vec<_> = gaps.iter().map(|gap| (gap.longest_latency_us, gap.longest_gap_us)).collect();
        assert_eq!(found, [(Some(70), Some(76)), (None, Some(8)), (Some(5), Some(9))]);
    }

    #[test]
    fn silence_up_to_the_end_of_a_window_counts() {
        let gaps = gap_in_windows(&[ack(0, 5), ack(6, 7)], &[(10, 50)]);
        assert_eq!((gaps[0].longest_latency_us, gaps[0].longest_gap_us), (None, Some(43)));
        assert_eq!(gap_in_windows(&[], &[(10, 50)])[0].longest_gap_us, None);
    }
}
