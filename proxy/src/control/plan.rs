//! What a flip would do, and what speaks against it. The same checks run before every flip.

use super::Control;
use super::boundary::{Lead, Part, Quiet};
use super::client::{Address, request};
use super::takeover::{self, TakenOver};
use super::unknown::{Refusal, unknown_topic};
use crossover_admin_api::model::{Check, CheckResult, Plan, PlanRequest, Side};
use crossover_core::api::key;
use crossover_core::cutover;
use crossover_core::ids::ClusterSide;
use crossover_core::route::{LinkMode, Snapshot, TopicRoute};
use crossover_core::schema::Value;
use crossover_core::session::{TransactionSeen, lock};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two readings of the dry run.
const REREAD_PAUSE: Duration = Duration::from_millis(10);
/// How long a high watermark may stay behind a log end it was seen to trail (RULES R10). The rule's 200 ms are too few
/// where one reading of busy brokers takes half of that: five times as long still proves a stuck follower.
const SETTLE: Duration = Duration::from_secs(1);
/// Settings that change what a topic accepts or how it answers; they must not differ to the worse.
const COMPARED: [&str; 4] =
    ["message.timestamp.type", "compression.type", "min.insync.replicas", "retention.ms"];

/// What to do where a leader does not answer.
const LEADERS: &str = "bring the broker up, or wait until another one leads its partitions";

/// Partitions that a check names.
const PARTITIONS_NAMED: usize = 3;

/// Transactional ids that the plan names.
const NAMED_MAX: usize = 10;

/// Gathers checks.
struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, name: &str, result: CheckResult, detail: String, remedy: &str) {
        let remedy = if result == CheckResult::Passed { "" } else { remedy };
        self.0.push(Check { name: name.to_owned(), result, detail, remedy: remedy.to_owned() });
    }

    fn judge(&mut self, name: &str, problem: Option<String>, fine: String, remedy: &str) {
        match problem {
            Some(problem) => self.add(name, CheckResult::Failed, problem, remedy),
            None => self.add(name, CheckResult::Passed, fine, remedy),
        }
    }
}

impl Control {
    /// Runs all checks; changes nothing but, with `create`, missing topics of the new owner (not in a dry run).
    pub(crate) async fn plan(&self, request: &PlanRequest, dry: bool) -> Plan {
        let to: ClusterSide = request.to.map_or(ClusterSide::Target, Into::into);
        let mut checks = Checks(Vec::new());
        // As a cutover does, which then asks no cluster: a wish that is fulfilled is not refused.
        let there = self.are_there(&request.topics, to);
        let asks_for_groups = request.with_groups || !request.groups.is_empty();
        let (mut expected, mut groups_move) = (None, false);
        if self.is_taken_over() {
            checks.add("taken-over", CheckResult::Failed, TakenOver.to_string(), takeover::REMEDY);
        }
        if there {
            let fine = format!("already on the {to}, nothing to do: {}", request.topics.join(", "));
            checks.add("routes", CheckResult::Passed, fine, "");
        }
        if !there || asks_for_groups {
            let reachable = self.check_reachable(&mut checks).await;
            if !there {
                expected = self.check_flip(&mut checks, request, to, dry, reachable).await;
            }
            if reachable {
                groups_move = self.check_groups(&mut checks, request, to).await;
            }
        }
        let refused = checks.0.iter().any(|c| c.result == CheckResult::Failed);
        Plan {
            revision: self.state().revision.0,
            to: Side::from(to),
            topics: request.topics.clone(),
            groups: request.groups.clone(),
            checks: checks.0,
            expected_pause_ms: expected,
            refused,
            nothing_to_do: there && !groups_move && !refused,
        }
    }

    /// The checks of topics that are to move. Gives the expected pause in milliseconds.
    async fn check_flip(
        &self,
        checks: &mut Checks,
        request: &PlanRequest,
        to: ClusterSide,
        dry: bool,
        reachable: bool,
    ) -> Option<f64> {
        let mut expected = None;
        let routes = self.check_routes(checks, &request.topics, to);
        if let (Some(routes), true) = (routes, reachable) {
            if self.check_topics(checks, &routes, to, request.create, dry).await {
                let routes = self.fresh(&routes);
                self.check_configs(checks, &routes, to, request.force).await;
                self.check_replicas(checks, &routes);
                self.check_transactions(checks, &routes, to, request.force).await;
                self.check_outcomes(checks, &routes);
                expected = self.check_logs(checks, &routes, to, request.force).await;
            } else {
                let why = "both sides must have the topics first".to_owned();
                checks.add(
                    "settings, replicas, producers, log ends",
                    CheckResult::NotDone,
                    why,
                    "create the topics, or see what the cutover itself finds",
                );
            }
        }
        self.check_writers(checks, &request.topics, to.other()).await;
        expected
    }

    fn check_routes(
        &self,
        checks: &mut Checks,
        topics: &[String],
        to: ClusterSide,
    ) -> Option<Vec<Arc<TopicRoute>>> {
        const NAME: &str = "routes";
        let snapshot = self.runtime.snapshot();
        let mut routes = Vec::new();
        let mut refused = false;
        for name in topics {
            match self.check_route(&snapshot, name, to) {
                Ok(route) => routes.push(route),
                Err(Refusal { problem, remedy }) => {
                    refused = true;
                    checks.add(NAME, CheckResult::Failed, problem, &remedy);
                }
            }
        }
        if !refused {
            let moved = match routes.as_slice() {
                [one] => format!("topic {} moves to the {to}", one.name),
                all => format!("{} topics move to the {to}", all.len()),
            };
            checks.add(NAME, CheckResult::Passed, moved, "");
        }
        (!refused).then_some(routes)
    }

    fn check_route(
        &self,
        snapshot: &Snapshot,
        name: &str,
        to: ClusterSide,
    ) -> Result<Arc<TopicRoute>, Refusal> {
        let refused = |problem: String, remedy: &str| Err(Refusal { problem, remedy: remedy.to_owned() });
        let Some(route) = snapshot.routes.topic(name) else { return Err(unknown_topic(snapshot, name)) };
        // Each cluster has its own, also where both have one of this name; no force moves it.
        if self.is_internal(route) {
            let problem = format!("topic {name} is internal to its cluster and never moves");
            return refused(problem, "leave it out");
        }
        let uncertain = {
            let closed = self.closed();
            closed.reason(name).filter(|_| closed.unsealed.contains(name))
        };
        if let Some(problem) = uncertain {
            return refused(problem, "look at the disk of state.directory, then restart crossover");
        }
        if route.owner == to {
            let problem = format!("topic {name} is already on the {to}");
            return refused(
                problem,
                "leave it out: it needs no move, and the topics of one command move together",
            );
        }
        if let Some(why) = &route.frozen {
            let problem = format!("topic {name} is frozen: {why}");
            return refused(
                problem,
                "see its alarm in `crossover status`, and frozen-route in docs/runbook.md",
            );
        }
        match self.closed().reason(name) {
            Some(problem) => {
                refused(problem, "repeat it in a moment; if it stays, see the alarms in `crossover status`")
            }
            None => Ok(Arc::clone(route)),
        }
    }

    /// Whether writers that bypass the proxy are kept out of the old log behind the flip.
    async fn check_writers(&self, checks: &mut Checks, topics: &[String], from: ClusterSide) {
        const NAME: &str = "broker-side-fence";
        const WATCHED: &str = "growth of the old log is watched after the flip";
        let denied = &self.runtime.config.fence.deny_write;
        if denied.is_empty() {
            let detail =
                format!("writers that bypass the proxy are not kept out by access control lists; {WATCHED}");
            let remedy =
                "make sure that nobody writes to the topics directly, or name principals in fence.deny_write";
            return checks.add(NAME, CheckResult::NotDone, detail, remedy);
        }
        let whom = denied.join(", ");
        let physical = |name: &String| {
            let snapshot = self.runtime.snapshot();
            snapshot
                .routes
                .topic(name)
                .map_or_else(|| Arc::from(name.as_str()), |r| Arc::clone(r.physical(from)))
        };
        let Some(topic) = topics.first().map(physical) else { return };
        match self.can_fence(from, &topic).await {
            Ok(()) => {
                let detail =
                    format!("{whom} will not be allowed to write to the topics on the {from} any more");
                checks.add(NAME, CheckResult::Passed, detail, "");
            }
            Err(problem) => {
                let detail =
                    format!("{whom} can still write to the topics on the {from}: {problem}; {WATCHED}");
                checks.add(
                    NAME,
                    CheckResult::Warned,
                    detail,
                    "make sure that nobody writes to the topics directly",
                );
            }
        }
    }

    fn is_internal(&self, route: &TopicRoute) -> bool {
        let topic = |side: ClusterSide| self.topology(side).topic(route.physical(side)).cloned();
        ClusterSide::BOTH.into_iter().filter_map(topic).any(|topic| topic.internal)
    }

    async fn check_reachable(&self, checks: &mut Checks) -> bool {
        let mut all = true;
        for side in ClusterSide::BOTH {
            let reachable = super::topology::refresh(self, side).await;
            all &= reachable;
            let problem =
                (!reachable).then(|| self.problem_of(side).unwrap_or_else(|| "no broker answers".to_owned()));
            checks.judge(
                &format!("{side}-reachable"),
                problem,
                "it answers".to_owned(),
                "bring the cluster up, or correct its bootstrap addresses",
            );
        }
        all
    }

    /// Both sides have the topics, with as many partitions. Missing ones are created when all others are fine: a unit
    /// that is refused leaves nothing behind (RULES R16).
    async fn check_topics(
        &self,
        checks: &mut Checks,
        routes: &[Arc<TopicRoute>],
        to: ClusterSide,
        create: bool,
        dry: bool,
    ) -> bool {
        const NAME: &str = "topic-exists";
        let (mut fine, mut missing) = (true, Vec::new());
        for route in routes {
            match self.counts(route, to) {
                Ok(Some(detail)) => checks.add(NAME, CheckResult::Passed, detail, ""),
                Ok(None) if create => missing.push(route),
                Ok(None) => {
                    fine = false;
                    let problem = format!("topic {} does not exist on the {to}", route.physical(to));
                    let remedy = "create it with the same number of partitions, or pass --create";
                    checks.add(NAME, CheckResult::Failed, problem, remedy);
                }
                Err((problem, remedy)) => {
                    fine = false;
                    checks.add(NAME, CheckResult::Failed, problem, remedy);
                }
            }
        }
        for route in missing {
            let name = &route.name;
            if dry || !fine {
                let detail = format!("topic {name} will be created on the {to}");
                checks.add(NAME, CheckResult::Warned, detail, "nothing, or create it yourself");
                fine = false;
                continue;
            }
            let created = self.create_like(route, to).await;
            fine &= created.is_ok();
            let problem =
                created.err().map(|why| format!("topic {name} cannot be created on the {to}: {why:#}"));
            let detail = format!("{name} was created on the {to}");
            checks.judge(NAME, problem, detail, "create it yourself, with the same number of partitions");
        }
        fine
    }

    /// What is told of the partitions on both sides; `None` when the new owner lacks the topic; what is wrong, with its
    /// remedy.
    fn counts(&self, route: &TopicRoute, to: ClusterSide) -> Result<Option<String>, (String, &'static str)> {
        let (from, name) = (to.other(), &route.name);
        let count = |side: ClusterSide| {
            self.topology(side).topic(route.physical(side)).map(|topic| topic.partitions.len())
        };
        match (count(from), count(to)) {
            (None, _) => {
                Err((format!("topic {name} is gone from the {from}"), "create it again, or leave it out"))
            }
            (Some(_), None) => Ok(None),
            (Some(old), Some(new)) if old == new => {
                Ok(Some(format!("{name} has {old} partitions on both sides")))
            }
            (Some(old), Some(new)) => Err((
                format!("topic {name} has {old} partitions on the {from} and {new} on the {to}"),
                "add partitions where there are fewer; --create does not change a topic that exists",
            )),
        }
    }

    fn fresh(&self, routes: &[Arc<TopicRoute>]) -> Vec<Arc<TopicRoute>> {
        let snapshot = self.runtime.snapshot();
        routes.iter().filter_map(|r| snapshot.routes.topic(&r.name).cloned()).collect()
    }

    /// Creates a topic as the other side has it: partitions, replicas as far as there are brokers, its own settings.
    async fn create_like(&self, route: &TopicRoute, to: ClusterSide) -> anyhow::Result<()> {
        let from = to.other();
        let old = self.topology(from).topic(route.physical(from)).cloned();
        let old = old.ok_or_else(|| anyhow::anyhow!("it is gone from the {from}"))?;
        let replicas = old.partitions.iter().map(|p| p.replicas.len()).max().unwrap_or(1);
        let replicas = replicas.min(self.topology(to).brokers.len()).max(1);
        let mut body = request(key::CREATE_TOPICS);
        body.set("timeoutMs", 10_000);
        let mut topic = body.new_element("Topics");
        topic.set("Name", route.physical(to));
        topic.set("NumPartitions", i32::try_from(old.partitions.len())?);
        topic.set("ReplicationFactor", i16::try_from(replicas)?);
        for (name, (value, own)) in self.configs(from, route.physical(from)).await? {
            if own {
                let mut config = topic.new_element("Configs");
                config.set("Name", name);
                config.set("Value", value);
                topic.push("Configs", config);
            }
        }
        body.push("Topics", topic);
        // A cluster with ZooKeeper creates topics at its controller only.
        let controller = self.topology(to).controller.and_then(|id| self.address(to, id).ok());
        let at = controller.map_or_else(|| self.any_address(to), Ok)?;
        let answer = self.client.call(&at, key::CREATE_TOPICS, i16::MAX, &body).await?;
        for topic in answer.structs("Topics") {
            let error = topic.i16("ErrorCode");
            anyhow::ensure!(error == 0, "error {error}: {}", topic.str("ErrorMessage"));
        }
        self.await_topic(route, to, old.partitions.len()).await
    }

    async fn await_topic(
        &self,
        route: &TopicRoute,
        side: ClusterSide,
        partitions: usize,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            super::topology::refresh(self, side).await;
            let topology = self.topology(side);
            let led = topology.topic(route.physical(side)).map_or(0, |t| {
                t.partitions.iter().filter(|p| topology.brokers.contains_key(&p.leader)).count()
            });
            if led == partitions {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "its partitions have no leaders after 10 s");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Settings of a topic: value, and whether the topic itself sets it.
    async fn configs(
        &self,
        side: ClusterSide,
        physical: &Arc<str>,
    ) -> anyhow::Result<BTreeMap<String, (String, bool)>> {
        const TOPIC: i8 = 2;
        // Its leader must be up for a flip; any other broker may hang.
        let leader = self.topology(side).leader(physical, 0).and_then(|id| self.address(side, id).ok());
        let at = leader.map_or_else(|| self.any_address(side), Ok)?;
        self.configs_of(&at, TOPIC, physical).await
    }

    /// How long a cluster's coordinators let a group's first members wait for others, milliseconds.
    async fn first_rebalance_ms(&self, side: ClusterSide) -> Option<String> {
        const BROKER: i8 = 4;
        let broker = self.topology(side).any_broker()?;
        let at = self.address(side, broker).ok()?;
        let mut all = self.configs_of(&at, BROKER, &broker.to_string()).await.ok()?;
        all.remove("group.initial.rebalance.delay.ms").map(|(value, _)| value)
    }

    async fn configs_of(
        &self,
        at: &Address,
        kind: i8,
        name: &str,
    ) -> anyhow::Result<BTreeMap<String, (String, bool)>> {
        const SOURCE_TOPIC: i8 = 1;
        let mut body = request(key::DESCRIBE_CONFIGS);
        let mut resource = body.new_element("Resources");
        resource.set("ResourceType", kind);
        resource.set("ResourceName", name);
        resource.set("ConfigurationKeys", Value::Array(None));
        body.push("Resources", resource);
        let answer = self.client.call(at, key::DESCRIBE_CONFIGS, i16::MAX, &body).await?;
        let mut all = BTreeMap::new();
        for result in answer.structs("Results") {
            let error = result.i16("ErrorCode");
            anyhow::ensure!(error == 0, "DescribeConfigs of {name} answers error {error}");
            for config in result.structs("Configs") {
                let own = config.i8("ConfigSource") == SOURCE_TOPIC;
                all.insert(config.str("Name").to_owned(), (config.str("Value").to_owned(), own));
            }
        }
        Ok(all)
    }

    async fn check_configs(
        &self,
        checks: &mut Checks,
        routes: &[Arc<TopicRoute>],
        to: ClusterSide,
        force: bool,
    ) {
        for route in routes {
            let [source, target] = ClusterSide::BOTH.map(|side| self.configs(side, route.physical(side)));
            let (source, target) = match (source.await, target.await) {
                (Ok(source), Ok(target)) => (source, target),
                (Err(problem), _) | (_, Err(problem)) => {
                    checks.add(
                        "topic-settings",
                        CheckResult::Failed,
                        format!("the settings of {} cannot be read: {problem:#}", route.name),
                        LEADERS,
                    );
                    continue;
                }
            };
            let value = |of: &BTreeMap<String, (String, bool)>, name: &str| {
                of.get(name).map(|v| v.0.clone()).unwrap_or_default()
            };
            let retentions = [value(&source, "retention.ms"), value(&target, "retention.ms")];
            check_history(checks, route, retentions, to, self.runtime.now_ms());
            let policies = [value(&source, "cleanup.policy"), value(&target, "cleanup.policy")];
            let compacted =
                route.mode == LinkMode::Continue && policies.iter().any(|p| p.contains("compact"));
            if compacted {
                let result = if force { CheckResult::Warned } else { CheckResult::Failed };
                checks.add("compacted-topic", result, format!("{}: cleanup.policy is {} / {}: in mode continue a tombstone that one side drops brings the key back from the other", route.name, policies[0], policies[1]), "copy compacted topics with an offset-preserving replicator and mode identity, or pass --force");
            }
            let limits = [value(&source, "max.message.bytes"), value(&target, "max.message.bytes")]
                .map(|v| v.parse::<i64>().unwrap_or(0));
            let (old, new) = (limits[to.other().index()], limits[to.index()]);
            let detail = format!(
                "{}: max.message.bytes is {} on the source and {} on the target",
                route.name, limits[0], limits[1]
            );
            match new.cmp(&old) {
                Ordering::Less => {
                    checks.add("max-message-bytes", CheckResult::Failed, detail, "raise it on the new owner")
                }
                Ordering::Equal => checks.add("max-message-bytes", CheckResult::Passed, detail, ""),
                Ordering::Greater => checks.add(
                    "max-message-bytes",
                    CheckResult::Warned,
                    detail,
                    "raise it on the old owner too, or a move back will be refused",
                ),
            }
            let settings = if to == ClusterSide::Source { &source } else { &target };
            let wanted = value(settings, "min.insync.replicas").parse::<usize>().unwrap_or(1);
            let topology = self.topology(to);
            let least = topology
                .topic(route.physical(to))
                .and_then(|t| t.partitions.iter().map(|p| p.isr.len()).min());
            let problem = least.filter(|live| *live < wanted).map(|live| format!("{}: min.insync.replicas is {wanted} on the {to}, a partition has {live} live replicas: it would refuse acks=all", route.name));
            checks.judge(
                "min-insync-replicas",
                problem,
                format!("{}: enough live replicas on the {to}", route.name),
                "add replicas, or lower min.insync.replicas",
            );
            for name in COMPARED {
                let pair = [value(&source, name), value(&target, name)];
                if pair[0] != pair[1] {
                    let hard = name == "message.timestamp.type" || name == "compression.type";
                    let result = if hard { CheckResult::Failed } else { CheckResult::Warned };
                    checks.add(
                        "topic-settings",
                        result,
                        format!(
                            "{}: {name} is {} on the source and {} on the target",
                            route.name, pair[0], pair[1]
                        ),
                        "set the same value on both sides",
                    );
                }
            }
        }
    }

    /// Complete ISR on both sides (RULES R10).
    fn check_replicas(&self, checks: &mut Checks, routes: &[Arc<TopicRoute>]) {
        let mut problems = Vec::new();
        let mut away = BTreeSet::new();
        for (route, side) in routes.iter().flat_map(|r| ClusterSide::BOTH.map(|s| (r, s))) {
            let topology = self.topology(side);
            let Some(topic) = topology.topic(route.physical(side)) else { continue };
            for (index, partition) in topic.partitions.iter().enumerate() {
                let at = format!("{}-{index} on the {side}", topic.name);
                let (live, all) = (partition.isr.len(), partition.replicas.len());
                if !topology.brokers.contains_key(&partition.leader) {
                    problems.push(format!("{at} has no leader"));
                } else if live < all {
                    problems.push(format!("{at} has {live} of {all} replicas in sync"));
                }
                let gone = partition.replicas.iter().filter(|broker| !topology.brokers.contains_key(broker));
                away.extend(gone.map(|broker| format!("broker {broker} of the {side}")));
            }
        }
        let remedy = match away.is_empty() {
            true => "wait until all replicas are in sync, and for reassignments to end".to_owned(),
            false => format!(
                "bring {} up, or move the replicas elsewhere with kafka-reassign-partitions",
                away.into_iter().collect::<Vec<_>>().join(" and ")
            ),
        };
        let more = problems.len().saturating_sub(PARTITIONS_NAMED);
        problems.truncate(PARTITIONS_NAMED);
        let more = if more > 0 { format!(", and {more} more partitions") } else { String::new() };
        let problem = (!problems.is_empty()).then(|| problems.join(", ") + &more);
        checks.judge("replicas-in-sync", problem, "all replicas are in sync".to_owned(), &remedy);
    }

    /// Transactional ids follow their topics between two transactions. All that a transaction takes in must be on one side.
    async fn check_transactions(
        &self,
        checks: &mut Checks,
        routes: &[Arc<TopicRoute>],
        to: ClusterSide,
        force: bool,
    ) {
        const NAME: &str = "transactional-producers";
        let told = match self.leads(routes, to.other()) {
            Ok(leads) => {
                let told = self.transactions(to.other(), &leads).await;
                told.map(|told| (told.writers(&leads), told.incomplete))
            }
            Err(problem) => Err(problem),
        };
        let (ids, incomplete) =
            told.unwrap_or_else(|problem| (BTreeSet::new(), Some(format!("{problem:#}"))));
        if let Some(why) = incomplete {
            let detail = format!("not all transactions could be listed: {why}");
            let remedy = "a flip waits limits.hold_ms_max for them and is aborted otherwise: bring the broker up, or wait until its cluster has seen that it is gone";
            checks.add(NAME, CheckResult::Warned, detail, remedy);
        }
        let topics: Vec<Arc<str>> = routes.iter().map(|route| Arc::clone(&route.name)).collect();
        let seen = self.runtime.shared.transactions.written_to(&topics);
        for (id, seen) in &seen {
            if let Some((problem, remedy)) = self.stays_behind(id, seen, &topics, to.other()) {
                let result = if force { CheckResult::Warned } else { CheckResult::Failed };
                checks.add(NAME, result, problem, remedy);
            }
        }
        let all: BTreeSet<&str> = seen.keys().map(|id| &**id).chain(ids.iter().map(String::as_str)).collect();
        let detail = match all.len() {
            0 => "there are none".to_owned(),
            count => {
                let names: Vec<&str> = all.iter().copied().take(NAMED_MAX).collect();
                let more = if count > NAMED_MAX { ", …" } else { "" };
                format!(
                    "{count} transactional ids follow, each with its next transaction: {}{more}",
                    names.join(", ")
                )
            }
        };
        checks.add(NAME, CheckResult::Passed, detail, "");
    }

    /// What a transaction takes in that does not move with it, and what to do.
    fn stays_behind(
        &self,
        id: &str,
        seen: &TransactionSeen,
        topics: &[Arc<str>],
        from: ClusterSide,
    ) -> Option<(String, &'static str)> {
        let snapshot = self.runtime.snapshot();
        let stays = |topic: &&Arc<str>| {
            let route = snapshot.routes.topic(topic).filter(|_| !topics.contains(topic));
            route.is_some_and(|route| route.owner == from)
        };
        let topic = seen.written.iter().find(stays)?;
        let problem = format!(
            "transactional id {id} writes to {topic} too, which stays on the {from}: its transactions would be refused"
        );
        Some((problem, "name the topic too, or pass --force"))
    }

    /// No produce is still on its way to a log from a connection that was lost (RULES R2).
    fn check_outcomes(&self, checks: &mut Checks, routes: &[Arc<TopicRoute>]) {
        let mut unknown = None;
        let now = self.runtime.now_ms();
        let grace = i64::try_from(self.runtime.config.timeouts.loss_grace.as_millis()).unwrap_or(i64::MAX);
        for route in routes {
            for (partition, gate) in self.runtime.shared.gates.of_topic(&route.name) {
                let mut gate = lock(&gate);
                match gate.unknown_since_ms() {
                    Some(at) if now - at < grace => {
                        unknown = Some(format!(
                            "{}-{partition}: the outcome of a produce request is unknown since a connection was lost {} ms ago",
                            route.name,
                            now - at
                        ));
                    }
                    Some(_) => gate.resolve_unknown(),
                    None => {}
                }
            }
        }
        if let Some(at) = self.unclean_since_ms.filter(|at| now - at < grace) {
            unknown = Some(format!(
                "crossover did not end by itself before this start, {} ms ago: produce may still be on its way to a broker",
                now - at
            ));
        }
        checks.judge(
            "unknown-outcomes",
            unknown,
            "none".to_owned(),
            "wait for timeouts.loss_grace_ms and repeat",
        );
    }

    /// Both logs are quiet enough, and the idle one stands where it should. Gives the expected pause in milliseconds.
    async fn check_logs(
        &self,
        checks: &mut Checks,
        routes: &[Arc<TopicRoute>],
        to: ClusterSide,
        force: bool,
    ) -> Option<f64> {
        let from = to.other();
        let leads = self.leads(routes, from).and_then(|old| Ok((old, self.leads(routes, to)?)));
        let (old, new) = match leads {
            Ok(leads) => leads,
            Err(problem) => {
                checks.add("log-ends", CheckResult::Failed, format!("{problem:#}"), LEADERS);
                return None;
            }
        };
        self.check_idle_side(checks, routes, &new, to, force).await;
        let (problem, took) = self.settle(from, &old).await;
        let fine = format!("{} partitions answer in {:.1} ms", old.len(), took.as_secs_f64() * 1000.0);
        checks.judge(
            "log-ends",
            problem,
            fine,
            "wait until the followers have caught up; where a broker does not answer, bring it up or wait until another one leads its partitions",
        );
        Some(took.as_secs_f64() * 1000.0 + 2.0)
    }

    /// Reads the logs until every high watermark has reached the log end it was first seen to trail (RULES R10); under
    /// live traffic it always trails a little. Gives what is wrong, and how long the last reading took.
    async fn settle(&self, from: ClusterSide, old: &[Lead]) -> (Option<String>, Duration) {
        let begun = Instant::now();
        let mut first: Option<(Instant, BTreeMap<Part, i64>)> = None;
        loop {
            let started = Instant::now();
            let read = self.read_quiet(from, old).await;
            let took = started.elapsed();
            let problem = match read {
                Err(problem) => Some(format!("the {from} does not tell where its logs end: {problem:#}")),
                Ok(quiet) => {
                    let (_, ends) = first.get_or_insert_with(|| {
                        let ends = quiet.iter().map(|q| (q.lead.part.clone(), q.reading.log_end));
                        (Instant::now(), ends.collect())
                    });
                    quiet.iter().find_map(|q| trails(q, ends))
                }
            };
            // A slow reading must not use up the time: only one that began after it can say that nothing has moved.
            let since = first.as_ref().map_or(begun, |(at, _)| *at);
            if problem.is_none() || started >= since + SETTLE {
                return (problem, took);
            }
            tokio::time::sleep(REREAD_PAUSE).await;
        }
    }

    async fn check_idle_side(
        &self,
        checks: &mut Checks,
        routes: &[Arc<TopicRoute>],
        new: &[Lead],
        to: ClusterSide,
        force: bool,
    ) {
        // A leader that has just been told to lead, of a topic that was just created say, refuses at first.
        let until = Instant::now() + SETTLE;
        let ends = loop {
            match self.read_ends(to, new).await {
                Err(_) if Instant::now() < until => tokio::time::sleep(REREAD_PAUSE).await,
                read => break read,
            }
        };
        match ends {
            Err(problem) => {
                let problem = format!("the {to} does not tell where its logs end: {problem:#}");
                checks.add("idle-side", CheckResult::Failed, problem, LEADERS)
            }
            Ok(ends) => {
                let mut problem = None;
                for ((topic, partition), (_, end)) in ends {
                    let route = routes.iter().find(|r| r.name == topic);
                    if let Some(Err(why)) = route.map(|r| cutover::check_idle(r, partition, to, end)) {
                        problem = Some(format!("{why:#}"));
                    }
                }
                let result =
                    if force && problem.is_some() { CheckResult::Warned } else { CheckResult::Failed };
                match problem {
                    Some(problem) => {
                        checks.add("idle-side", result, problem, "find the writer that bypasses the proxy")
                    }
                    None => checks.add(
                        "idle-side",
                        CheckResult::Passed,
                        format!("nothing was written to the {to} meanwhile"),
                        "",
                    ),
                }
            }
        }
    }

    /// Whether any group would move along, or ought to perhaps.
    async fn check_groups(&self, checks: &mut Checks, request: &PlanRequest, to: ClusterSide) -> bool {
        if request.groups.is_empty() && !request.with_groups {
            checks.add(
                "groups",
                CheckResult::NotDone,
                "groups keep their home; their members are served there through the proxy".to_owned(),
                "move them with `crossover groups move`",
            );
            return false;
        }
        if let Some(Refusal { problem, remedy }) = self.unknown_group(&request.groups).await {
            checks.add("groups", CheckResult::Failed, problem, &remedy);
            return false;
        }
        let created: &[String] = if request.create { &request.topics } else { &[] };
        let wait = match self.first_rebalance_ms(to).await {
            Some(ms) => format!("{ms} ms (the {to}'s group.initial.rebalance.delay.ms)"),
            None => format!("the {to}'s group.initial.rebalance.delay.ms, which it did not tell"),
        };
        let (groups, unread) =
            self.groups_of(&request.groups, request.with_groups, &request.topics, to).await;
        let stays = !unread.is_empty();
        for problem in unread {
            checks.add(
                "groups",
                CheckResult::Warned,
                problem,
                "wait until it is stable, or move it by name later",
            );
        }
        for group in &groups {
            let problem =
                self.check_group(group, to, created).await.err().map(|why| format!("group {group}: {why:#}"));
            checks.judge(
                "groups",
                problem,
                format!("group {group} moves along; its members rejoin together, which takes until the last one's next heartbeat (heartbeat.interval.ms, 3 s by default) and {wait} more"),
                "leave the group out, or remove the cause",
            );
        }
        stays || !groups.is_empty()
    }
}

/// When what stays behind is gone by retention (RULES R23); `retentions` are each side's `retention.ms`. It refuses
/// nothing: consumers that come later find less.
fn check_history(
    checks: &mut Checks,
    route: &TopicRoute,
    retentions: [String; 2],
    to: ClusterSide,
    now_ms: i64,
) {
    let end = |(side, retention): (ClusterSide, String)| {
        let last = left_at_ms(route, side, to, now_ms)?;
        Some(match retention.parse::<i64>().ok()? {
            retention @ 0.. => format!("on the {side} by {}", utc(last.saturating_add(retention))),
            retention => format!("on the {side} never (retention.ms is {retention})"),
        })
    };
    let ends: Vec<String> = ClusterSide::BOTH.into_iter().zip(retentions).filter_map(end).collect();
    if route.mode == LinkMode::Continue && !ends.is_empty() {
        let detail = format!("{}: after this flip the history ends {}", route.name, ends.join(", "));
        checks.add("history", CheckResult::Passed, detail, "");
    }
}

/// When the last record of a side's history was written, if the topic were flipped to `to` now: history is what lies in
/// eras that have ended.
fn left_at_ms(route: &TopicRoute, side: ClusterSide, to: ClusterSide, now_ms: i64) -> Option<i64> {
    if side != to {
        return Some(now_ms);
    }
    let eras: Vec<_> = route.timeline(0)?.eras().collect();
    let ends = eras.windows(2).filter(|pair| pair[0].side == side).map(|pair| pair[1].sealed_at_ms);
    ends.max()
}

/// Unix milliseconds as a date, to the minute.
fn utc(at_ms: i64) -> String {
    let (days, minutes) = (at_ms.div_euclid(86_400_000), at_ms.rem_euclid(86_400_000) / 60_000);
    // Days since 1970-01-01 to a date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

fn trails(quiet: &Quiet, ends: &BTreeMap<Part, i64>) -> Option<String> {
    let end = ends.get(&quiet.lead.part).copied().unwrap_or(0);
    let (name, partition) = &quiet.lead.part;
    let watermark = quiet.reading.high_watermark;
    (watermark < end).then(|| {
        format!(
            "{name}-{partition}: high watermark {watermark} has not reached log end {end} within {SETTLE:?}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::{Checks, utc};
    use crossover_admin_api::model::{CheckResult, PlanRequest};
    use crossover_core::ids::ClusterSide;

    #[tokio::test]
    async fn a_plan_of_a_topic_that_is_there_has_nothing_to_do_as_its_cutover() {
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &["orders"]);
        let request = PlanRequest { topics: vec!["orders".to_owned()], ..PlanRequest::default() };
        let plan = control.plan(&request, true).await;
        assert!(plan.nothing_to_do && !plan.refused, "{plan:?}");
        let said: Vec<_> = plan.checks.iter().map(|check| (check.name.as_str(), check.result)).collect();
        assert_eq!(said, [("routes", CheckResult::Passed)], "no cluster is asked: {plan:?}");
        // Back again there is much to do; here both clusters are down.
        let back = PlanRequest { to: Some(ClusterSide::Source.into()), ..request };
        let plan = control.plan(&back, true).await;
        assert!(plan.refused && !plan.nothing_to_do, "{plan:?}");
    }

    #[test]
    fn each_topic_that_cannot_move_has_its_own_remedy() {
        let control = testing::control([Some(&["orders", "new"]), Some(&["orders"])], &["orders"]);
        let mut checks = Checks(Vec::new());
        let topics = ["orders", "new", "odrers"].map(str::to_owned);
        assert!(control.check_routes(&mut checks, &topics, ClusterSide::Target).is_none());
        let said: Vec<_> = checks.0.iter().map(|c| (c.detail.as_str(), c.remedy.as_str())).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].0.contains("orders is already on the target") && said[0].1.contains("leave it out"));
        assert!(said[1].0.contains("odrers does not exist") && said[1].1.contains("did you mean orders?"));
    }

    #[test]
    fn r23_dates_are_right() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_765_236_665), "2026-11-27 07:40 UTC");
        assert_eq!(utc(4_107_542_399_999), "2100-02-28 23:59 UTC");
    }
}
