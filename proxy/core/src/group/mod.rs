//! What all sessions know of classic consumer groups: the members seen alive, and which of them have come to the
//! rebalance that moves the group's home.

use crate::session::lock;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

/// Living members remembered per process at most; more are served, but a group with an overlooked one cannot be drained.
const MEMBERS_MAX: usize = 100_000;
/// Groups remembered before those that are over are looked for.
const GROUPS_MIN: usize = 5_000;
/// A group without members is remembered for so long after its last word, milliseconds: one that begins anew every few
/// minutes is the same one to an operator.
const GROUP_KEPT_MS: i64 = 60 * 60 * 1000;
/// `session.timeout.ms` of clients that do not tell it.
const SESSION_TIMEOUT_MS: i64 = 45_000;
/// Groups whose commits are counted before those that have none under way any more are looked for.
const COUNTED_MIN: usize = 1_000;

/// One member of a classic group.
#[derive(Clone, Debug)]
pub struct Member {
    pub generation: i32,
    /// When it was last heard of, milliseconds of the core's clock.
    pub seen_ms: i64,
    /// Without a word for so long it is dead, milliseconds.
    pub session_timeout_ms: i64,
    /// Its JoinGroup waits for the group's new home.
    pub parked: bool,
}

#[derive(Debug, Default)]
struct Group {
    members: HashMap<String, Member>,
    /// Members that were parked together, less those that have gone since: so many come to the new home.
    coming: usize,
    /// Commits stored with a tag at the home, as last seen: (topic, partition).
    tagged: BTreeSet<(Arc<str>, i32)>,
    /// The member that a static member's name stands for now.
    instances: HashMap<String, String>,
    /// Members of the old home, with their generation there, that the proxy is taking to the new one.
    spliced: HashMap<String, i32>,
    /// Members of the consumer protocol that were told to own nothing, and whether they do (KIP-848).
    emptied: HashMap<String, bool>,
    /// Until then a member for whom there was no room may be alive, milliseconds.
    overlooked_until_ms: i64,
    /// When a member of it spoke, or something was committed.
    heard_ms: i64,
}

/// Groups by name. None is forgotten while it has members, or while a move of it is not forgotten.
#[derive(Debug, Default)]
struct Groups {
    by_name: HashMap<Arc<str>, Group>,
    /// At so many groups those that are over are looked for.
    look_at: usize,
    /// There are no more members than this.
    members_most: usize,
}

impl Groups {
    fn heard_of(&mut self, name: &str, now_ms: i64) -> &mut Group {
        if !self.by_name.contains_key(name) {
            self.make_room(now_ms);
        }
        let group = self.by_name.entry(Arc::from(name)).or_default();
        group.heard_ms = now_ms;
        group
    }

    fn make_room(&mut self, now_ms: i64) {
        if self.by_name.len() >= self.look_at.max(GROUPS_MIN) {
            self.by_name.retain(|_, group| !group.is_over(now_ms));
            self.look_at = 2 * self.by_name.len();
        }
    }

    /// Whether there is room for another member. The dead make room.
    fn has_room(&mut self, now_ms: i64) -> bool {
        if self.members_most >= MEMBERS_MAX {
            self.by_name.values_mut().for_each(|group| group.forget_dead(now_ms));
            self.members_most = self.by_name.values().map(|group| group.members.len()).sum();
        }
        self.members_most < MEMBERS_MAX
    }
}

/// As long as somebody holds one, a commit is under way.
type UnderWay = Arc<()>;

/// Commits that are under way, by group.
#[derive(Debug, Default)]
struct Commits {
    counted: HashMap<Arc<str>, UnderWay>,
    look_at: usize,
}

impl Commits {
    fn one(&mut self, group: &str) -> UnderWay {
        if let Some(counted) = self.counted.get(group) {
            return Arc::clone(counted);
        }
        if self.counted.len() >= self.look_at.max(COUNTED_MIN) {
            self.counted.retain(|_, counted| Arc::strong_count(counted) > 1);
            self.look_at = 2 * self.counted.len();
        }
        Arc::clone(self.counted.entry(Arc::from(group)).or_default())
    }

    fn any(&self, group: &str) -> bool {
        self.counted.get(group).is_some_and(|counted| Arc::strong_count(counted) > 1)
    }
}

#[derive(Debug, Default)]
struct SentCommits {
    under_way: Commits,
    /// Groups that take none, and how many have asked for that.
    closed: BTreeMap<Arc<str>, u32>,
}

/// Groups that have been seen since the start.
#[derive(Debug, Default)]
pub struct GroupRegistry {
    groups: Mutex<Groups>,
    /// Of members of one side, to the other.
    across: Mutex<Commits>,
    /// To the group's home.
    sent: Mutex<SentCommits>,
}

impl GroupRegistry {
    /// Names of all groups seen.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        self.lock().by_name.keys().cloned().collect()
    }

    /// Commits of a group that are stored with a tag, as far as seen.
    #[must_use]
    pub fn tagged(&self, group: &str) -> u32 {
        self.lock().by_name.get(group).map_or(0, |g| u32::try_from(g.tagged.len()).unwrap_or(u32::MAX))
    }

    pub fn note_commit(&self, group: &str, topic: &Arc<str>, partition: i32, tagged: bool, now_ms: i64) {
        let mut groups = self.lock();
        let group = groups.heard_of(group, now_ms);
        let at = (Arc::clone(topic), partition);
        if tagged {
            group.tagged.insert(at);
        } else {
            group.tagged.remove(&at);
        }
    }

    /// Commits of a group were deleted; all of them with `None`.
    pub fn forget_commits(&self, group: &str, partitions: Option<&[(Arc<str>, i32)]>) {
        if let Some(group) = self.lock().by_name.get_mut(group) {
            group.tagged.retain(|at| partitions.is_some_and(|deleted| !deleted.contains(at)));
        }
    }

    /// A topic was deleted, and its commits with it.
    pub fn forget_topic(&self, topic: &str) {
        let mut groups = self.lock();
        groups.by_name.values_mut().for_each(|group| group.tagged.retain(|(t, _)| **t != *topic));
    }

    /// A member has joined or has sent a heartbeat.
    pub fn alive(
        &self,
        group: &str,
        member: &str,
        generation: i32,
        session_timeout_ms: Option<i64>,
        now_ms: i64,
    ) {
        if member.is_empty() {
            return;
        }
        let mut groups = self.lock();
        let known = groups.by_name.get_mut(group).and_then(|group| {
            group.heard_ms = now_ms;
            group.members.get_mut(member)
        });
        if let Some(known) = known {
            known.generation = generation;
            known.seen_ms = now_ms;
            known.session_timeout_ms = session_timeout_ms.unwrap_or(known.session_timeout_ms);
            return;
        }
        let session_timeout_ms = session_timeout_ms.unwrap_or(SESSION_TIMEOUT_MS);
        if !groups.has_room(now_ms) {
            groups.heard_of(group, now_ms).overlooked_until_ms = now_ms + session_timeout_ms;
            return;
        }
        groups.members_most += 1;
        let known = Member { generation, seen_ms: now_ms, session_timeout_ms, parked: false };
        groups.heard_of(group, now_ms).members.insert(member.to_owned(), known);
    }

    /// Its coordinator knows a member that has said nothing here yet: the proxy has just started, or the member does not
    /// go through it.
    pub fn enrol(&self, group: &str, member: &str, now_ms: i64) {
        if self.member(group, member).is_none() {
            self.alive(group, member, -1, None, now_ms);
        }
    }

    /// A member has left, or its coordinator does not know it.
    pub fn left(&self, group: &str, member: &str) {
        if let Some(group) = self.lock().by_name.get_mut(group) {
            let was_parked = group.members.remove(member).is_some_and(|member| member.parked);
            group.coming = group.coming.saturating_sub(usize::from(was_parked));
        }
    }

    /// A static member has joined: the one that had its name before is no member any more, although it never left.
    pub fn stands_for(&self, group: &str, instance: &str, member: &str) {
        if let Some(group) = self.lock().by_name.get_mut(group)
            && let Some(before) = group.instances.insert(instance.to_owned(), member.to_owned())
            && before != member
        {
            group.members.remove(&before);
        }
    }

    /// The proxy joins a parked member to the group's new home.
    pub fn splice(&self, group: &str, member: &str) {
        if let Some(group) = self.lock().by_name.get_mut(group)
            && let Some(known) = group.members.remove(member)
        {
            group.spliced.insert(member.to_owned(), known.generation);
        }
    }

    /// The member is told that it is at the new home, or has gone.
    pub fn spliced(&self, group: &str, member: &str) {
        if let Some(group) = self.lock().by_name.get_mut(group) {
            group.spliced.remove(member);
        }
    }

    /// Whether a member of this generation is on its way to the group's new home.
    #[must_use]
    pub fn is_spliced(&self, group: &str, member: &str, generation: i32) -> bool {
        self.lock().by_name.get(group).is_some_and(|group| group.spliced.get(member) == Some(&generation))
    }

    /// A member of the consumer protocol speaks while its group is moved, and is told to own nothing. `owned`: how many
    /// partitions it says it has; `None`: as many as before. Only what it says after it was told counts.
    pub fn empty(&self, group: &str, member: &str, owned: Option<usize>) {
        let mut groups = self.lock();
        let emptied = &mut groups.by_name.entry(Arc::from(group)).or_default().emptied;
        match emptied.get_mut(member) {
            Some(owns_nothing) => *owns_nothing |= owned == Some(0),
            None => drop(emptied.insert(member.to_owned(), false)),
        }
    }

    /// Whether a member has given up what it owned since it was told to.
    #[must_use]
    pub fn is_emptied(&self, group: &str, member: &str) -> bool {
        self.lock().by_name.get(group).is_some_and(|group| group.emptied.get(member) == Some(&true))
    }

    /// The move is over. Whether the member was told to own nothing; it is to join anew, wherever that is.
    pub fn take_emptied(&self, group: &str, member: &str) -> bool {
        self.lock().by_name.get_mut(group).is_some_and(|group| group.emptied.remove(member).is_some())
    }

    /// A commit of a member of one side goes to the other side. It is under way until what this returns is dropped.
    #[must_use]
    pub fn commit_under_way(&self, group: &str) -> UnderWay {
        lock(&self.across).one(group)
    }

    /// Whether commits of members of one side are under way to the other: what is read now may be older than they are.
    #[must_use]
    pub fn has_commits_under_way(&self, group: &str) -> bool {
        lock(&self.across).any(group)
    }

    /// A commit is sent to the group's home, and under way until what this returns is dropped. `None`: not now, for the
    /// commits are being copied to another home.
    #[must_use]
    pub fn send_commit(&self, group: &str) -> Option<UnderWay> {
        let mut sent = lock(&self.sent);
        if sent.closed.contains_key(group) { None } else { Some(sent.under_way.one(group)) }
    }

    /// From now on no commit of the group is sent to its home. Those under way go on.
    pub fn close_commits(&self, group: &Arc<str>) {
        *lock(&self.sent).closed.entry(Arc::clone(group)).or_default() += 1;
    }

    /// Commits of the group may be sent again, as far as whoever calls this is concerned.
    pub fn open_commits(&self, group: &str) {
        let closed = &mut lock(&self.sent).closed;
        if let Some(count) = closed.get_mut(group) {
            *count -= 1;
            closed.retain(|_, count| *count > 0);
        }
    }

    /// Whether a commit was sent to the group's home and is not answered yet.
    #[must_use]
    pub fn has_sent_commits(&self, group: &str) -> bool {
        lock(&self.sent).under_way.any(group)
    }

    pub fn park(&self, group: &str, member: &str, parked: bool, now_ms: i64) {
        let mut groups = self.lock();
        let Some(group) = groups.by_name.get_mut(group) else { return };
        let Some(member) = group.members.get_mut(member) else { return };
        member.parked = parked;
        member.seen_ms = now_ms;
        if parked {
            let together = group.members.values().filter(|m| m.parked).count();
            // The first one begins another move.
            group.coming = if together == 1 { 1 } else { group.coming.max(together) };
        }
    }

    /// How many members of a group have been parked for its latest move, and have not gone.
    #[must_use]
    pub fn coming(&self, group: &str) -> usize {
        self.lock().by_name.get(group).map_or(0, |g| g.coming)
    }

    #[must_use]
    pub fn member(&self, group: &str, member: &str) -> Option<Member> {
        self.lock().by_name.get(group)?.members.get(member).cloned()
    }

    /// Every living member has come to the rebalance. Dead ones are forgotten.
    #[must_use]
    pub fn is_drained(&self, group: &str, now_ms: i64) -> bool {
        self.missing(group, now_ms) == 0
    }

    /// Living members that have not come yet.
    #[must_use]
    pub fn missing(&self, group: &str, now_ms: i64) -> usize {
        let mut groups = self.lock();
        let Some(group) = groups.by_name.get_mut(group) else { return 0 };
        group.forget_dead(now_ms);
        group.members.values().filter(|m| !m.parked).count() + usize::from(group.overlooked_until_ms > now_ms)
    }

    fn lock(&self) -> MutexGuard<'_, Groups> {
        lock(&self.groups)
    }
}

impl Group {
    /// Nobody belongs to it, and nobody has for long.
    fn is_over(&mut self, now_ms: i64) -> bool {
        self.forget_dead(now_ms);
        let is_empty = self.members.is_empty() && self.spliced.is_empty() && self.emptied.is_empty();
        let is_plain = self.tagged.is_empty() && self.coming == 0;
        is_empty && is_plain && now_ms - self.heard_ms >= GROUP_KEPT_MS
    }

    fn forget_dead(&mut self, now_ms: i64) {
        self.members.retain(|_, m| m.parked || now_ms - m.seen_ms < m.session_timeout_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_member_takes_the_place_of_the_one_before() {
        let registry = GroupRegistry::default();
        for (member, at) in [("a-1", 0), ("a-2", 5_000)] {
            registry.alive("g", member, 1, Some(45_000), at);
            registry.stands_for("g", "a", member);
        }
        registry.stands_for("g", "a", "a-2");
        registry.park("g", "a-2", true, 6_000);
        assert!(registry.is_drained("g", 6_000), "the first one never left");
    }

    #[test]
    fn a_member_of_which_only_its_coordinator_has_told_is_waited_for() {
        let registry = GroupRegistry::default();
        registry.enrol("g", "m", 0);
        assert_eq!(registry.missing("g", 0), 1);
        registry.alive("g", "m", 7, Some(10_000), 2_000);
        registry.enrol("g", "m", 3_000);
        let known = registry.member("g", "m").map(|m| (m.generation, m.session_timeout_ms, m.seen_ms));
        assert_eq!(known, Some((7, 10_000, 2_000)), "it has spoken since");
        registry.park("g", "m", true, 4_000);
        assert!(registry.is_drained("g", 4_000));
    }

    #[test]
    fn a_member_has_given_up_what_it_owned_when_it_says_so_after_it_was_told() {
        let registry = GroupRegistry::default();
        registry.empty("g", "m", Some(0));
        assert!(!registry.is_emptied("g", "m"), "it may be on its way to what it was assigned before");
        registry.empty("g", "m", None);
        assert!(!registry.is_emptied("g", "m"));
        registry.empty("g", "m", Some(0));
        registry.empty("g", "m", None);
        assert!(registry.is_emptied("g", "m"));
        assert!(registry.take_emptied("g", "m") && !registry.take_emptied("g", "m"));
    }

    #[test]
    fn members_that_were_parked_together_are_counted_until_they_go_or_the_next_move() {
        let registry = GroupRegistry::default();
        for member in ["a", "b", "c"] {
            registry.alive("g", member, 1, None, 0);
            registry.park("g", member, true, 0);
        }
        registry.left("g", "c");
        registry.left("g", "of whom nobody knows");
        assert_eq!(registry.coming("g"), 2, "c has gone while it was parked");
        for member in ["a", "b"] {
            registry.park("g", member, false, 1);
            registry.left("g", member);
            assert_eq!(registry.coming("g"), 2, "{member} has come to the new home");
        }
        registry.alive("g", "d", 1, None, 2);
        registry.park("g", "d", true, 2);
        assert_eq!(registry.coming("g"), 1, "the next move");
    }

    #[test]
    fn a_group_is_drained_when_all_living_members_are_parked() {
        let registry = GroupRegistry::default();
        assert!(registry.is_drained("g", 0));
        registry.alive("g", "a", 1, Some(10_000), 0);
        registry.alive("g", "b", 1, Some(10_000), 5_000);
        registry.park("g", "a", true, 6_000);
        assert!(!registry.is_drained("g", 6_000));
        assert_eq!(registry.missing("g", 14_999), 1);
        assert!(registry.is_drained("g", 15_000), "b has died");
        assert!(registry.member("g", "b").is_none());
        assert!(registry.is_drained("g", 90_000) && registry.member("g", "a").is_some(), "it only waits");
        // It has gone to the old home as if nothing were, and is as alive as then.
        registry.park("g", "a", false, 90_000);
        assert_eq!(registry.missing("g", 99_999), 1);
        registry.left("g", "a");
        assert!(registry.member("g", "a").is_none());
    }

    #[test]
    fn a_member_lives_for_its_session_timeout_after_its_last_word() {
        let registry = GroupRegistry::default();
        registry.alive("g", "", 1, Some(10_000), 0);
        assert_eq!((registry.names().len(), registry.missing("g", 0)), (0, 0), "it has no name yet");
        registry.alive("g", "a", 1, Some(10_000), 0);
        // A heartbeat does not tell the timeout.
        registry.alive("g", "a", 2, None, 9_000);
        assert_eq!(registry.member("g", "a").map(|a| a.generation), Some(2));
        assert_eq!((registry.missing("g", 18_999), registry.missing("g", 19_000)), (1, 0));
        registry.alive("g", "a", 3, Some(10_000), 0);
        registry.alive("g", "a", 3, Some(20_000), 0);
        assert_eq!((registry.missing("g", 19_999), registry.missing("g", 20_000)), (1, 0));
        // The clients' default, where nobody has told it.
        registry.alive("g", "a", 4, None, 0);
        assert_eq!((registry.missing("g", 44_999), registry.missing("g", 45_000)), (1, 0));
        assert_eq!(registry.names(), [Arc::from("g")]);
    }

    #[test]
    fn so_many_members_are_remembered_over_all_groups() {
        let registry = GroupRegistry::default();
        let fill = |seen_ms| {
            for number in 0..MEMBERS_MAX {
                registry
                    .lock()
                    .by_name
                    .entry(Arc::from(format!("g{}", number % 2)))
                    .or_default()
                    .members
                    .insert(
                        number.to_string(),
                        Member { generation: 1, seen_ms, session_timeout_ms: 10, parked: false },
                    );
            }
            registry.lock().members_most = MEMBERS_MAX;
        };
        fill(0);
        registry.alive("g0", "one more", 1, None, 10);
        assert!(registry.member("g0", "one more").is_some(), "the dead make room");
        assert_eq!((registry.missing("g0", 10), registry.missing("g1", 10)), (1, 0));
        fill(20);
        registry.alive("g2", "another", 1, None, 29);
        registry.alive("g1", "1", 7, None, 29);
        assert!(registry.member("g2", "another").is_none());
        assert!(!registry.is_drained("g2", 29), "nobody knows when it comes to the rebalance");
        assert_eq!(registry.member("g1", "1").map(|known| known.generation), Some(7));
    }

    #[test]
    fn tagged_commits_are_counted_until_they_are_overwritten_or_deleted() {
        let registry = GroupRegistry::default();
        let [g, t, u]: [Arc<str>; 3] = ["g", "t", "u"].map(Arc::from);
        let fill = || {
            for (topic, partition) in [(&t, 0), (&t, 1), (&u, 0)] {
                registry.note_commit(&g, topic, partition, true, 0);
                registry.note_commit(&g, topic, partition, true, 0);
            }
            assert_eq!((registry.tagged("g"), registry.tagged("another")), (3, 0));
        };
        fill();
        registry.note_commit(&g, &t, 1, false, 0);
        assert_eq!(registry.tagged("g"), 2);
        fill();
        registry.forget_commits("g", Some(&[(Arc::clone(&t), 0), (Arc::clone(&t), 7)]));
        assert_eq!(registry.tagged("g"), 2);
        fill();
        registry.forget_topic("t");
        assert_eq!(registry.tagged("g"), 1);
        fill();
        registry.forget_commits("g", None);
        assert_eq!(registry.tagged("g"), 0);
    }

    #[test]
    fn a_member_on_its_way_is_known_by_the_generation_of_its_old_home() {
        let registry = GroupRegistry::default();
        registry.alive("g", "a", 4, None, 0);
        assert!(!registry.is_spliced("g", "a", 4));
        registry.splice("g", "a");
        assert!(registry.member("g", "a").is_none(), "the old home knows it no more");
        assert!(registry.is_spliced("g", "a", 4) && !registry.is_spliced("g", "a", 5));
        assert!(!registry.is_spliced("g", "b", 4));
        registry.spliced("g", "a");
        assert!(!registry.is_spliced("g", "a", 4));
    }

    #[test]
    fn commits_are_under_way_as_long_as_anybody_holds_one() {
        let registry = GroupRegistry::default();
        assert!(!registry.has_commits_under_way("g"));
        let (one, another) = (registry.commit_under_way("g"), registry.commit_under_way("g"));
        drop(one);
        assert!(registry.has_commits_under_way("g") && !registry.has_commits_under_way("h"));
        drop(another);
        assert!(!registry.has_commits_under_way("g"));
    }

    #[test]
    fn r28_commits_are_sent_until_those_there_are_copied() {
        let registry = GroupRegistry::default();
        let sent = registry.send_commit("g");
        assert!(sent.is_some() && registry.has_sent_commits("g") && !registry.has_sent_commits("h"));
        registry.close_commits(&Arc::from("g"));
        assert!(registry.send_commit("g").is_none() && registry.send_commit("h").is_some());
        assert!(registry.has_sent_commits("g"), "what is under way is waited for");
        drop(sent);
        assert!(!registry.has_sent_commits("g"));
        registry.close_commits(&Arc::from("g"));
        registry.open_commits("g");
        assert!(registry.send_commit("g").is_none(), "somebody else copies them");
        registry.open_commits("g");
        registry.open_commits("never closed");
        assert!(registry.send_commit("g").is_some());
    }

    #[test]
    fn commits_of_any_number_of_groups_are_counted_while_they_are_under_way() {
        let registry = GroupRegistry::default();
        let kept = registry.send_commit("kept");
        for number in 0..3 * COUNTED_MIN {
            assert!(registry.send_commit(&number.to_string()).is_some());
        }
        assert!(registry.has_sent_commits("kept"));
        assert!(lock(&registry.sent).under_way.counted.len() <= 2 * COUNTED_MIN);
        drop(kept);
    }

    /// `kafka-console-consumer`, anonymous groups of Spring: each start has a group of its own.
    #[test]
    fn groups_that_have_ended_are_forgotten() {
        let registry = GroupRegistry::default();
        for number in 0..50_000 {
            let group = format!("console-consumer-{number}");
            registry.alive(&group, "m", 1, Some(10_000), number * 1_000);
            registry.note_commit(&group, &Arc::from("t"), 0, false, number * 1_000);
            registry.left(&group, "m");
        }
        assert!(
            registry.names().len() < 10_000,
            "{} groups without members or commits",
            registry.names().len()
        );
    }

    #[test]
    fn a_group_that_was_too_large_once_can_be_moved_when_it_is_small() {
        let registry = GroupRegistry::default();
        for number in 0..=MEMBERS_MAX {
            registry.lock().by_name.entry(Arc::from("big")).or_default().members.insert(
                number.to_string(),
                Member { generation: 1, seen_ms: 0, session_timeout_ms: 10_000, parked: false },
            );
        }
        registry.lock().members_most = MEMBERS_MAX;
        registry.alive("g", "m", 1, Some(10_000), 1);
        // All have gone long since.
        assert_eq!(registry.missing("g", 100_000_000), 0);
    }
}
