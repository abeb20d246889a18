//! What the demo shows while it runs: one line per second, and what the producers saw of each flip.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::drivers::Cast;
use super::stage::FlipRecord;
use super::{PARTITIONS, TOPIC};

const TICK: Duration = Duration::from_secs(1);
/// Around a flip, and as long before it for comparison.
const WINDOW_US: i64 = 1_000_000;

pub(super) struct Screen {
    began: Instant,
    owner: String,
    acknowledged: u64,
    delivered: u64,
    last: Instant,
}

impl Screen {
    pub(super) fn new(owner: String) -> Screen {
        let now = Instant::now();
        Screen { began: now, owner, acknowledged: 0, delivered: 0, last: now }
    }

    pub(super) fn owner(&mut self, owner: &str) {
        owner.clone_into(&mut self.owner);
    }

    pub(super) fn say(&self, text: &str) {
        println!("{:>4} s  {text}", self.began.elapsed().as_secs());
    }

    /// One line per second for a while.
    pub(super) async fn watch(&mut self, cast: &mut Cast, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.tick(cast).await?;
        }
        Ok(())
    }

    /// One line per second until something has ended.
    pub(super) async fn watch_until<T>(
        &mut self,
        cast: &mut Cast,
        work: impl Future<Output = T>,
    ) -> anyhow::Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                // What it drops half-way is its sleep.
                ticked = self.tick(cast) => ticked?,
            }
        }
    }

    /// Until every producer has been acknowledged and every group has been served something.
    pub(super) async fn until_everyone_works(
        &mut self,
        cast: &mut Cast,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.tick(cast).await?;
            let silent_producer = cast.producers.iter().find(|driver| driver.history.acknowledged() == 0);
            let silent_consumer = cast.consumers.iter().find(|driver| driver.history.delivered() == 0);
            let Some(silent) = silent_producer.or(silent_consumer) else { return Ok(()) };
            if Instant::now() > deadline {
                bail!("nothing from {} within {} s", silent.history.path().display(), limit.as_secs());
            }
        }
    }

    /// Until every group has read everything that was acknowledged; the verdict judges a group that does not come so far.
    pub(super) async fn until_drained(&mut self, cast: &mut Cast, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.tick(cast).await?;
            let written = cast.acknowledged();
            let behind = cast.consumers.iter().find(|driver| driver.history.delivered() < written);
            let Some(behind) = behind else { return Ok(()) };
            if Instant::now() > deadline {
                let read = behind.history.delivered();
                println!(
                    "The {} group has read {read} of {written} records and gets no more time.",
                    behind.name
                );
                return Ok(());
            }
        }
    }

    async fn tick(&mut self, cast: &mut Cast) -> anyhow::Result<()> {
        tokio::time::sleep(TICK).await;
        cast.refresh()?;
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        // Display only.
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let (acknowledged, delivered) = (cast.acknowledged(), cast.delivered());
        self.say(&format!(
            "{TOPIC} on the {:<6}  produced {:>5.0}/s  consumed {:>5.0}/s by {} groups  errors {}",
            self.owner,
            rate(acknowledged, self.acknowledged),
            rate(delivered, self.delivered),
            cast.consumers.len(),
            cast.errors(),
        ));
        (self.acknowledged, self.delivered) = (acknowledged, delivered);
        Ok(())
    }

    pub(super) fn flipped(&self, record: &FlipRecord, took: Duration) {
        let held = record.hold_ms.map_or("an unknown time".to_owned(), |ms| format!("{ms:.1} ms"));
        self.say(&format!(
            "{TOPIC} is on the {}: {} of {PARTITIONS} partitions moved, produce was held for {held} (from the end of FENCE to RELEASE), the command took {} ms",
            record.owner,
            record.partitions.len(),
            took.as_millis(),
        ));
    }

    /// The longest time without an acknowledgement around the flip, beside that of the same time before it.
    pub(super) fn pauses(&self, cast: &Cast, began_us: i64, ended_us: i64) {
        let (start, end) = (began_us, ended_us + WINDOW_US);
        let before = (2 * start - end, start);
        for driver in &cast.producers {
            let show = |(from, to): (i64, i64)| {
                driver
                    .history
                    .longest_gap_ms(from, to)
                    .map_or("nothing".to_owned(), |ms| format!("{ms:.0} ms"))
            };
            self.say(&format!(
                "  longest wait for an acknowledgement, {}: {} (before the flip: {})",
                driver.name,
                show((start, end)),
                show(before),
            ));
        }
    }
}
