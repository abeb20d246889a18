//! The fetch session a client sees (KIP-227): the proxy's own, one per connection (RULES R17).

use super::fetch_entry::{Entry, EntryKey};
use super::fetch_signal::Signals;
use crate::error_code as code;
use crate::ids::TopicId;
use crate::schema::Struct;
use crate::session::UpstreamKey;
use std::collections::HashMap;

/// Partitions of one session at most.
const PARTITIONS_MAX: usize = 100_000;
/// How long one upstream keeps the others waiting at first, and how often that doubles at most.
const PATIENCE_MS: i64 = 100;
const DOUBLINGS_MAX: u32 = 6;
/// A new session.
const INITIAL: i32 = 0;
/// No session.
const FINAL: i32 = -1;

/// The fetch session of one client connection.
#[derive(Debug, Default)]
pub struct ClientSessions {
    current: Option<FetchSession>,
    pub(super) signals: Signals,
    /// How often an upstream's answer came too late and was dropped.
    late: HashMap<UpstreamKey, u32>,
}

/// What a client fetches again and again.
#[derive(Debug)]
pub struct FetchSession {
    id: i32,
    /// The epoch the next request must carry.
    next_epoch: i32,
    /// Everything is answered, not only news.
    full: bool,
    members: Vec<Member>,
    /// The member that is asked for first: those that have got records stand behind the others.
    first: usize,
    index: HashMap<EntryKey, usize>,
}

#[derive(Clone, Debug)]
struct Member {
    key: EntryKey,
    position: i64,
    current_leader_epoch: i32,
    last_fetched_epoch: i32,
    max_bytes: i32,
    /// What was last told: high watermark and log start.
    told: (i64, i64),
    forgotten: bool,
}

impl ClientSessions {
    /// Takes the session a request belongs to; `None` for a request without one.
    ///
    /// # Errors
    /// FETCH_SESSION_ID_NOT_FOUND or INVALID_FETCH_SESSION_EPOCH: the client starts a new session.
    pub fn begin(
        &mut self,
        request: &Struct,
        version: i16,
        random: u64,
    ) -> Result<Option<FetchSession>, i16> {
        if version < 7 {
            return Ok(None);
        }
        let (id, epoch) = (request.i32("SessionId"), request.i32("SessionEpoch"));
        if epoch == FINAL || epoch == INITIAL {
            self.current = None;
            let wanted: usize = request.structs("Topics").map(|t| t.array("Partitions").len()).sum();
            if epoch == FINAL || wanted > PARTITIONS_MAX {
                return Ok(None);
            }
            let id = i32::try_from(random & 0x7fff_ffff).unwrap_or(1).max(1);
            let mut session = FetchSession {
                id,
                next_epoch: 1,
                full: true,
                members: Vec::new(),
                first: 0,
                index: HashMap::new(),
            };
            session.update(request);
            return Ok(Some(session));
        }
        let known = self.current.as_ref().filter(|s| s.id == id).ok_or(code::FETCH_SESSION_ID_NOT_FOUND)?;
        if known.next_epoch != epoch {
            return Err(code::INVALID_FETCH_SESSION_EPOCH);
        }
        let mut session = self.current.take().ok_or(code::FETCH_SESSION_ID_NOT_FOUND)?;
        session.next_epoch = if epoch == i32::MAX { 1 } else { epoch + 1 };
        session.full = false;
        session.forget(request);
        session.update(request);
        Ok(Some(session))
    }

    /// How long an upstream may keep the rest of a fetch waiting, milliseconds. What comes later is dropped, so the
    /// bound rises each time: however slow an upstream is, some answer of it is in time.
    #[must_use]
    pub fn patience_ms(&self, upstream: UpstreamKey) -> i64 {
        PATIENCE_MS << self.late.get(&upstream).copied().unwrap_or(0).min(DOUBLINGS_MAX)
    }

    /// An upstream's answer will come too late.
    pub fn was_late(&mut self, upstream: UpstreamKey) {
        let late = self.late.entry(upstream).or_default();
        *late = late.saturating_add(1);
    }

    /// The request is answered: the next one of the session may come.
    pub fn put_back(&mut self, session: FetchSession) {
        self.current = Some(session);
    }
}

impl FetchSession {
    #[must_use]
    pub fn id(&self) -> i32 {
        self.id
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// All members as entries of one request.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let (before, after) = self.members.split_at(self.first.min(self.members.len()));
        after
            .iter()
            .chain(before)
            .map(|m| {
                Entry::new(
                    m.key.clone(),
                    m.position,
                    m.current_leader_epoch,
                    m.last_fetched_epoch,
                    m.max_bytes,
                    m.told,
                )
            })
            .collect()
    }

    /// Remembers what was told. The size limit cuts off the last partitions of an answer, so the next one starts
    /// behind the last one that got records.
    pub fn answered(&mut self, entries: &[Entry]) {
        let last = entries.iter().rfind(|e| e.has_records()).and_then(|e| self.index.get(&e.key));
        if let Some(last) = last {
            self.first = (last + 1) % self.members.len().max(1);
        }
        for entry in entries {
            if let (Some(told), Some(index)) = (entry.telling(), self.index.get(&entry.key)) {
                self.members[*index].told = told;
            }
        }
    }

    fn update(&mut self, request: &Struct) {
        for entry in super::fetch_entry::entries_of(request) {
            let member = Member {
                key: entry.key.clone(),
                position: entry.position,
                current_leader_epoch: entry.current_leader_epoch,
                last_fetched_epoch: entry.last_fetched_epoch,
                max_bytes: entry.max_bytes,
                told: (-1, -1),
                forgotten: false,
            };
            match self.index.get(&entry.key) {
                Some(index) => {
                    let told = self.members[*index].told;
                    self.members[*index] = Member { told, ..member };
                }
                None if self.members.len() < PARTITIONS_MAX => {
                    self.index.insert(entry.key, self.members.len());
                    self.members.push(member);
                }
                None => {}
            }
        }
    }

    fn forget(&mut self, request: &Struct) {
        for topic in request.structs("ForgottenTopicsData") {
            for partition in topic.ints("Partitions") {
                let key = EntryKey {
                    topic: topic.str("Topic").to_owned(),
                    id: TopicId(topic.uuid("TopicId")),
                    partition: i32::try_from(partition).unwrap_or(-1),
                };
                if let Some(index) = self.index.get(&key) {
                    self.members[*index].forgotten = true;
                }
            }
        }
        if self.members.iter().any(|m| m.forgotten) {
            self.members.retain(|m| !m.forgotten);
            self.index = self.members.iter().enumerate().map(|(i, m)| (m.key.clone(), i)).collect();
        }
    }
}
