//! The one table of what a configuration file may contain. The reader takes defaults, ranges and the list of known
//! names from it, and `docs/configuration.md` is printed from it, so that none of them can say something else.

/// A table of the file, `[name]`, or `[[name]]` when it is repeated.
#[derive(Clone, Copy, Debug)]
pub struct SectionDoc {
    pub name: &'static str,
    pub repeated: bool,
    pub doc: &'static str,
}

/// A key of a section.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// Meaning, with unit and consequence; Markdown.
    pub doc: &'static str,
}

/// What may be written for a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A list of at least one `host:port`; mandatory.
    Addresses,
    /// One `host:port`; mandatory without a default.
    Address { default: Option<&'static str> },
    /// `"first-last"`, both included.
    Ports { default: &'static str },
    /// A whole number between `min` and `max`, both included.
    Integer { default: u64, min: u64, max: u64 },
    /// One word of a fixed list.
    Choice { default: &'static str, options: &'static [&'static str] },
    /// A list of Kafka principals, `Type:name`; empty when absent.
    Principals,
    /// Free text. `absent` says what holds when the key is not written.
    Text { absent: &'static str },
    /// A file or directory, relative to the directory of the configuration file.
    Path { default: Option<&'static str>, absent: &'static str },
}

/// A setting that is planned and not built: refused by name, because ignoring it would be worse (RULES R33).
#[derive(Clone, Copy, Debug)]
pub struct NotBuilt {
    /// Path of the key or table.
    pub path: &'static str,
    pub what: &'static str,
}

/// The hold bound that no configuration may exceed: producers give up near 10 s (DESIGN decision 4).
pub const HOLD_MS_HARD_MAX: u64 = 8_000;

pub const SECTIONS: &[SectionDoc] = &[
    SectionDoc {
        name: "source",
        repeated: false,
        doc: "The cluster where the topics live before any cutover.",
    },
    SectionDoc { name: "target", repeated: false, doc: "The cluster the topics move to." },
    SectionDoc { name: "listener", repeated: false, doc: "Where clients connect." },
    SectionDoc {
        name: "limits",
        repeated: false,
        doc: "Bounds on what a client or an operation may take. Nothing is unlimited.",
    },
    SectionDoc {
        name: "timeouts",
        repeated: false,
        doc: "How long Crossover waits for others, in milliseconds.",
    },
    SectionDoc {
        name: "routing",
        repeated: false,
        doc: "What holds for topics without a rule of their own.",
    },
    SectionDoc {
        name: "route",
        repeated: true,
        doc: "A rule for one topic or for all topics with a prefix. An exact name wins over a prefix, a longer prefix over a \
              shorter one. The file holds the *initial* owner; after the first cutover of a topic the state directory knows better.",
    },
    SectionDoc {
        name: "fence",
        repeated: false,
        doc: "Who is kept out of a topic on the cluster that has lost it, where that cluster has an authorizer.",
    },
    SectionDoc {
        name: "admin",
        repeated: false,
        doc: "The HTTP interface of operators and of the `crossover` commands.",
    },
    SectionDoc { name: "state", repeated: false, doc: "What has to survive a restart." },
    SectionDoc { name: "log", repeated: false, doc: "What Crossover writes to its standard error." },
];

const fn key(section: &'static str, name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { section, name, kind, doc }
}

const fn integer(default: u64, min: u64, max: u64) -> Kind {
    Kind::Integer { default, min, max }
}

const SIDES: &[&str] = &["source", "target"];

pub const KEYS: &[Key] = &[
    key("source", "bootstrap", Kind::Addresses, "Brokers of the source cluster; all of them are tried."),
    key("target", "bootstrap", Kind::Addresses, "Brokers of the target cluster; all of them are tried."),
    key(
        "listener",
        "bootstrap",
        Kind::Address { default: None },
        "The address given to clients as `bootstrap.servers`; Crossover listens on it.",
    ),
    key(
        "listener",
        "node_ports",
        Kind::Ports { default: "9100-9199" },
        "Ports for the virtual nodes, one for each broker of each cluster. A broker keeps its port for ever, so leave room for \
         brokers that come and go.",
    ),
    key(
        "listener",
        "advertised_host",
        Kind::Text { absent: "the host of `listener.bootstrap`" },
        "The host name or address under which clients reach the virtual nodes. Must be set when `listener.bootstrap` is `0.0.0.0` or `[::]`.",
    ),
    key(
        "listener",
        "max_connections",
        integer(10_000, 1, 1_000_000),
        "Client connections at one time, over all listeners; further ones are closed at once.",
    ),
    key(
        "limits",
        "frame_bytes_max",
        integer(104_857_600, 1_024, 2_147_483_647),
        "Largest request or response in bytes (Kafka's `socket.request.max.bytes`); a connection that announces more is closed.",
    ),
    key(
        "limits",
        "first_frame_bytes_max",
        integer(524_288, 1_024, 2_147_483_647),
        "Largest request in bytes before a client has introduced itself with a valid first request.",
    ),
    key(
        "limits",
        "in_flight_requests_max",
        integer(128, 1, 10_000),
        "Unanswered requests of one client connection; at the limit Crossover stops reading from it.",
    ),
    key(
        "limits",
        "hold_ms_max",
        integer(5_000, 100, HOLD_MS_HARD_MAX),
        "Longest time in milliseconds a produce request is held by a cutover. A cutover that keeps produce for four fifths of it goes back to the old owner.",
    ),
    key(
        "limits",
        "buffered_bytes_max",
        integer(268_435_456, 1_048_576, 1_099_511_627_776),
        "Bytes of held and queued requests over all connections; at the limit Crossover stops reading from clients. Not below `limits.frame_bytes_max`.",
    ),
    key(
        "limits",
        "carry_entries_max",
        integer(100_000, 1_000, 10_000_000),
        "Idempotent producers remembered for one partition over cutovers; a cutover that would exceed it is refused.",
    ),
    key("timeouts", "connect_ms", integer(5_000, 100, 60_000), "Opening a connection to a broker."),
    key(
        "timeouts",
        "control_request_ms",
        integer(3_000, 100, 60_000),
        "One request of Crossover's own to a broker, outside a cutover.",
    ),
    key(
        "timeouts",
        "metadata_refresh_ms",
        integer(2_000, 100, 300_000),
        "Time between two looks at brokers and leaders of each cluster.",
    ),
    key(
        "timeouts",
        "idle_pre_auth_ms",
        integer(10_000, 100, 600_000),
        "A new client connection that has not sent a complete first request is closed after this time.",
    ),
    key(
        "timeouts",
        "frame_ms",
        integer(60_000, 1_000, 600_000),
        "A request that has begun to arrive must be complete after this time, otherwise the connection is closed.",
    ),
    key(
        "timeouts",
        "idle_ms",
        integer(600_000, 10_000, 86_400_000),
        "A client connection without any request is closed after this time (Kafka's `connections.max.idle.ms`).",
    ),
    key(
        "timeouts",
        "companion_idle_ms",
        integer(60_000, 1_000, 86_400_000),
        "A companion connection without any request is closed after this time.",
    ),
    key(
        "timeouts",
        "loss_grace_ms",
        integer(10_000, 0, 600_000),
        "After a connection was lost with produce requests unanswered, or after an unclean start, a partition is not cut over before this time has passed (RULES R2).",
    ),
    key(
        "timeouts",
        "shutdown_ms",
        integer(10_000, 0, 600_000),
        "After SIGTERM: how long unanswered requests may still take before connections are closed.",
    ),
    key(
        "routing",
        "default_side",
        Kind::Choice { default: "source", options: SIDES },
        "Owner of a topic that no rule names; also where topics created by clients are created.",
    ),
    key(
        "route",
        "topic",
        Kind::Text { absent: "`prefix` must be given" },
        "The topic as clients name it. Either this or `prefix`.",
    ),
    key(
        "route",
        "prefix",
        Kind::Text { absent: "`topic` must be given" },
        "All topics whose name starts with this text. Either this or `topic`.",
    ),
    key("route", "side", Kind::Choice { default: "source", options: SIDES }, "The owner before any cutover."),
    key(
        "route",
        "mode",
        Kind::Choice { default: "continue", options: &["continue", "identity"] },
        "`continue`: the topic goes on in the other cluster, its history is read from where it was written. `identity`: an offset-preserving replicator \
         keeps both clusters equal.",
    ),
    key(
        "route",
        "source_topic",
        Kind::Text { absent: "the value of `topic`" },
        "Its name in the source cluster; only together with `topic`.",
    ),
    key(
        "route",
        "target_topic",
        Kind::Text { absent: "the value of `topic`" },
        "Its name in the target cluster; only together with `topic`.",
    ),
    key(
        "fence",
        "deny_write",
        Kind::Principals,
        "Principals that may not write to a topic on the side that does not own it any more: entries of its access control list there, \
         added behind a flip and removed before a flip back. Name whoever could write there directly, for example `[\"User:orders\"]`, or \
         `[\"User:*\"]` for everybody but super users; never a replicator that writes to that side. Crossover's own principal must be allowed \
         to DESCRIBE and ALTER the cluster. A change holds for topics that move afterwards.",
    ),
    key(
        "admin",
        "address",
        Kind::Address { default: Some("127.0.0.1:8080") },
        "Where the HTTP interface listens. An address that other machines can reach needs `token_file`.",
    ),
    key(
        "admin",
        "token_file",
        Kind::Path { default: None, absent: "no token is asked for" },
        "A file with the token that every request must carry as `Authorization: Bearer …`.",
    ),
    key(
        "admin",
        "max_connections",
        integer(64, 1, 10_000),
        "HTTP connections at one time; further ones are closed at once.",
    ),
    key(
        "state",
        "directory",
        Kind::Path { default: Some("crossover-state"), absent: "" },
        "Directory of the store with the route table, the timelines and the ledger. Created when missing; one process at a time.",
    ),
    key(
        "log",
        "filter",
        Kind::Text { absent: "`info`" },
        "What is logged, for example `info,crossover::cutover=debug`.",
    ),
    key(
        "log",
        "format",
        Kind::Choice { default: "text", options: &["text", "json"] },
        "`text` for people, `json` for machines, one object on each line.",
    ),
];

const fn not_built(path: &'static str, what: &'static str) -> NotBuilt {
    NotBuilt { path, what }
}

pub const NOT_BUILT: &[NotBuilt] = &[
    not_built("source.tls", "TLS to the source cluster"),
    not_built("source.sasl", "SASL to the source cluster"),
    not_built("target.tls", "TLS to the target cluster"),
    not_built("target.sasl", "SASL to the target cluster"),
    not_built("listener.tls", "TLS for clients"),
    not_built("listener.sasl", "SASL for clients"),
    not_built("listener.sni", "virtual nodes told apart by TLS server name"),
    not_built("admin.tls", "TLS for the HTTP interface"),
    not_built("fleet", "several instances side by side"),
    not_built("link", "the built-in copier and MirrorMaker 2 links"),
    not_built("telemetry", "export to OpenTelemetry"),
];

/// Values of `route.mode` that are planned and not built.
pub const MODES_NOT_BUILT: &[&str] = &["copy", "mirror"];

/// The entry of a key, `None` when there is no such key.
#[must_use]
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}
