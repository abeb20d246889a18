//! Follows the history file of one driver while it is written (format: `loadtest/README.md`).

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Read at one time; a driver writes far less between two looks.
const READ_MAX: u64 = 4 << 20;

/// Unix microseconds, the clock of the histories.
pub(super) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What one driver has logged so far.
#[derive(Debug)]
pub(super) struct History {
    path: PathBuf,
    /// Up to the last complete line that was read.
    read_to: u64,
    /// Times of acknowledgements, ascending.
    acknowledged_us: Vec<i64>,
    delivered: u64,
    /// Errors the application was told.
    errors: u64,
}

impl History {
    pub(super) fn new(path: PathBuf) -> History {
        History { path, read_to: 0, acknowledged_us: Vec::new(), delivered: 0, errors: 0 }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what was added since the last look.
    pub(super) fn refresh(&mut self) -> std::io::Result<()> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            // The driver has not come so far.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        loop {
            file.seek(SeekFrom::Start(self.read_to))?;
            let mut added = Vec::new();
            file.by_ref().take(READ_MAX).read_to_end(&mut added)?;
            let Some(end) = added.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
            added.truncate(end + 1);
            self.read_to += added.len() as u64;
            added.split(|byte| *byte == b'\n').for_each(|line| self.take(line));
        }
    }

    fn take(&mut self, line: &[u8]) {
        let mut fields =
            line.split(|byte| *byte == b'\t').map(|field| std::str::from_utf8(field).unwrap_or(""));
        let at_us = fields.next().and_then(|field| field.parse().ok());
        match (at_us, fields.next(), fields.next()) {
            (Some(at_us), Some("P.ok"), _) => self.acknowledged_us.push(at_us),
            (Some(_), Some("C.poll"), _) => self.delivered += 1,
            (Some(_), Some("P.fail" | "C.error" | "C.reset" | "C.lost" | "C.misplaced" | "E.error"), _)
            | (Some(_), Some("C.commit"), Some("fail")) => self.errors += 1,
            _ => {}
        }
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged_us.len() as u64
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// Longest time between two acknowledgements that overlaps a window, in milliseconds.
    pub(super) fn longest_gap_ms(&self, start_us: i64, end_us: i64) -> Option<f64> {
        let pairs = self.acknowledged_us.windows(2).filter_map(|pair| match pair {
            [first, second] if *first <= end_us && *second >= start_us => Some(second - first),
            _ => None,
        });
        // Display only; microseconds of a demo are far below 2^52.
        pairs.max().map(|gap| gap as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::History;

    #[test]
    fn a_growing_file_is_read_line_by_line() {
        let path = std::env::temp_dir().join(format!("crossover-demo-history-{}", std::process::id()));
        let mut history = History::new(path.clone());
        history.refresh().unwrap();
        std::fs::write(&path, "1000\tE.start\trole=producer\n2000\tP.ok\t0\t0\t0\t1900\n9000\tP.o").unwrap();
        history.refresh().unwrap();
        assert_eq!((history.acknowledged(), history.errors()), (1, 0));
        let rest =
            "k\t0\t1\t1\t8900\n9500\tC.commit\tfail\tx\n9600\tC.commit\tok\t0=1\n9700\tC.poll\t0\t1\t1\t1\n";
        let mut text = std::fs::read_to_string(&path).unwrap();
        text += rest;
        std::fs::write(&path, text).unwrap();
        history.refresh().unwrap();
        assert_eq!((history.acknowledged(), history.delivered(), history.errors()), (2, 1, 1));
        assert_eq!(history.longest_gap_ms(3000, 4000), Some(7.0));
        assert_eq!(history.longest_gap_ms(9001, 9500), None);
        std::fs::remove_file(&path).unwrap();
    }
}
