//! From a document to a [`Config`].

use std::path::Path;
use std::time::Duration;

use crate::conflicts::{self, Addresses};
use crate::document::{Document, Located, Section};
use crate::model::{
    Admin, Cluster, Config, Fence, HostPort, Limits, Listener, Log, LogFormat, Mode, PortRange, RoutePattern,
    RouteRule, Routing, Secret, Side, State, Timeouts,
};

/// Reads everything; `None` exactly when a problem was noted. `base` is the directory relative paths start from.
pub(crate) fn config(document: &Document<'_>, base: &Path) -> Option<Config> {
    let source = document.section("source").addresses("bootstrap");
    let target = document.section("target").addresses("bootstrap");
    let listener = document.section("listener");
    let bootstrap = listener.address("bootstrap");
    let node_ports = listener.ports("node_ports");
    let advertised_host = advertised_host(&listener, bootstrap.as_ref());
    let admin = document.section("admin");
    let admin_address = admin.address("address");
    let token = token(&admin, base, admin_address.as_ref());
    conflicts::addresses(
        document,
        &Addresses {
            source: source.as_ref(),
            target: target.as_ref(),
            listener: bootstrap.as_ref(),
            node_ports: node_ports.as_ref(),
            admin: admin_address.as_ref(),
        },
    );
    let limits = limits(&document.section("limits"));
    let timeouts = timeouts(&document.section("timeouts"));
    let routing = routing(document);
    let deny_write = document.section("fence").principals("deny_write");
    let max_connections = size(&listener.integer("max_connections"));
    let admin_connections = size(&admin.integer("max_connections"));
    let state = state(&document.section("state"), base);
    let log = log(&document.section("log"));
    if document.has_problems() {
        return None;
    }
    Some(Config {
        source: cluster(source?),
        target: cluster(target?),
        listener: Listener {
            bootstrap: bootstrap?.value,
            node_ports: node_ports?.value,
            advertised_host: advertised_host?,
            max_connections,
        },
        limits,
        timeouts,
        routing,
        fence: Fence { deny_write },
        admin: Admin { address: admin_address?.value, token, max_connections: admin_connections },
        state,
        log,
    })
}

fn cluster(bootstrap: Located<Vec<Located<HostPort>>>) -> Cluster {
    Cluster { bootstrap: bootstrap.value.into_iter().map(|address| address.value).collect() }
}

fn advertised_host(section: &Section<'_, '_>, bootstrap: Option<&Located<HostPort>>) -> Option<String> {
    let remedy = "set `listener.advertised_host` to a name or address that clients can reach";
    match section.text("advertised_host") {
        Some(host) => {
            // Brackets belong to the written form of an address with a port, not to a host.
            let bare = host.value.trim_start_matches('[').trim_end_matches(']');
            let written = if bare.contains(':') { format!("[{bare}]:1") } else { format!("{bare}:1") };
            match written.parse::<HostPort>() {
                Ok(parsed) if !parsed.is_unspecified() => return Some(parsed.host),
                _ => section.note(
                    host.line,
                    "advertised_host",
                    format!("\"{}\" is not a host that clients can reach", host.value),
                    "write a host name or an address, without a port",
                ),
            }
            None
        }
        None => {
            let bootstrap = bootstrap?;
            if bootstrap.value.is_unspecified() {
                let problem = format!("{} is no address that clients can connect to", bootstrap.value);
                section.note(bootstrap.line, "bootstrap", problem, remedy);
                return None;
            }
            Some(bootstrap.value.host.clone())
        }
    }
}

/// The token, and RULES R34: no address that other machines reach without one.
fn token(section: &Section<'_, '_>, base: &Path, address: Option<&Located<HostPort>>) -> Option<Secret> {
    let Some(file) = section.text("token_file") else {
        if let Some(address) = address.filter(|address| !address.value.is_loopback()) {
            let problem =
                format!("{} can be reached by other machines without authentication", address.value);
            section.note(address.line, "address", problem, "set `admin.token_file`, or listen on 127.0.0.1");
        }
        return None;
    };
    match Secret::read(&base.join(&file.value)) {
        Ok(secret) => Some(secret),
        Err(error) => {
            let problem = format!("the file {} {error}", file.value);
            section.note(
                file.line,
                "token_file",
                problem,
                "name a readable file that holds the token on one line",
            );
            None
        }
    }
}

fn limits(section: &Section<'_, '_>) -> Limits {
    let frame = section.integer("frame_bytes_max");
    let buffered = section.integer("buffered_bytes_max");
    if buffered.value < frame.value {
        section.note(
            buffered.line.max(frame.line),
            "buffered_bytes_max",
            format!(
                "{} bytes cannot hold one request of `frame_bytes_max` = {}",
                buffered.value, frame.value
            ),
            "raise it, or lower `limits.frame_bytes_max`",
        );
    }
    Limits {
        frame_bytes_max: size(&frame),
        first_frame_bytes_max: size(&section.integer("first_frame_bytes_max")),
        in_flight_requests_max: size(&section.integer("in_flight_requests_max")),
        hold_max: Duration::from_millis(section.integer("hold_ms_max").value),
        buffered_bytes_max: size(&buffered),
        carry_entries_max: size(&section.integer("carry_entries_max")),
    }
}

fn timeouts(section: &Section<'_, '_>) -> Timeouts {
    let read = |name| Duration::from_millis(section.integer(name).value);
    Timeouts {
        connect: read("connect_ms"),
        control_request: read("control_request_ms"),
        metadata_refresh: read("metadata_refresh_ms"),
        idle_pre_auth: read("idle_pre_auth_ms"),
        frame: read("frame_ms"),
        idle: read("idle_ms"),
        companion_idle: read("companion_idle_ms"),
        loss_grace: read("loss_grace_ms"),
        shutdown: read("shutdown_ms"),
    }
}

fn routing(document: &Document<'_>) -> Routing {
    let default_side = side(&document.section("routing").choice("default_side"));
    let mut rules = Vec::new();
    for section in document.repeated("route") {
        if let Some(rule) = route(&section) {
            rules.push(Located { value: rule, line: section.line });
        }
    }
    conflicts::routes(document, &rules);
    Routing { default_side, routes: rules.into_iter().map(|rule| rule.value).collect() }
}

fn route(section: &Section<'_, '_>) -> Option<RouteRule> {
    let rule_side = side(&section.choice("side"));
    let mode = match section.choice("mode").value.as_str() {
        "identity" => Mode::Identity,
        _ => Mode::Continue,
    };
    let names = [topic_name(section, "source_topic"), topic_name(section, "target_topic")];
    let pattern = match (section.text("topic"), section.text("prefix")) {
        (Some(topic), None) => {
            check_topic_name(section, "topic", &topic);
            let [source_topic, target_topic] =
                names.map(|name| name.map_or_else(|| topic.value.clone(), |name| name.value));
            RoutePattern::Exact { topic: topic.value, source_topic, target_topic }
        }
        (None, Some(prefix)) => {
            check_topic_name(section, "prefix", &prefix);
            for (key, name) in ["source_topic", "target_topic"].into_iter().zip(names) {
                if let Some(name) = name {
                    section.note(
                        name.line,
                        key,
                        "needs `topic`",
                        "remove it; topics of a prefix keep their names",
                    );
                }
            }
            RoutePattern::Prefix(prefix.value)
        }
        (Some(_), Some(prefix)) => {
            section.note(prefix.line, "prefix", "stands beside `topic`", "keep one of the two");
            return None;
        }
        (None, None) => {
            section.note(section.line, "topic", "is missing", "name a `topic` or a `prefix`");
            return None;
        }
    };
    Some(RouteRule { pattern, side: rule_side, mode })
}

fn topic_name(section: &Section<'_, '_>, key: &'static str) -> Option<Located<String>> {
    let name = section.text(key)?;
    check_topic_name(section, key, &name);
    Some(name)
}

/// Kafka's rule for topic names (`org.apache.kafka.common.internals.Topic.validate`).
fn check_topic_name(section: &Section<'_, '_>, key: &str, name: &Located<String>) {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let text = name.value.as_str();
    if text.len() > 249 || !text.chars().all(legal) || (key != "prefix" && matches!(text, "." | "..")) {
        let remedy = "use at most 249 letters, digits, dots, underscores and hyphens";
        section.note(name.line, key, format!("\"{text}\" is no topic name in Kafka"), remedy);
    }
}

fn state(section: &Section<'_, '_>, base: &Path) -> State {
    let directory = section.text("directory").map_or_else(|| "crossover-state".to_owned(), |text| text.value);
    State { directory: base.join(directory) }
}

fn log(section: &Section<'_, '_>) -> Log {
    let filter = section.text("filter").map_or_else(|| "info".to_owned(), |text| text.value);
    let format = match section.choice("format").value.as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    };
    Log { filter, format }
}

fn side(word: &Located<String>) -> Side {
    match word.value.as_str() {
        "target" => Side::Target,
        _ => Side::Source,
    }
}

fn size(number: &Located<u64>) -> usize {
    usize::try_from(number.value).unwrap_or(usize::MAX)
}

/// Whether a port of the range is this address' port on the same host.
pub(crate) fn range_hits(range: PortRange, listener: &HostPort, other: &HostPort) -> bool {
    range.contains(other.port) && listener.shares_host(other)
}
