//! Rules between keys: settings that are each right and cannot hold together.

use crate::document::{Document, Located};
use crate::model::{HostPort, PortRange, RoutePattern, RouteRule};
use crate::read::range_hits;

/// The addresses of a file; absent ones had a problem of their own.
pub(crate) struct Addresses<'a> {
    pub(crate) source: Option<&'a Located<Vec<Located<HostPort>>>>,
    pub(crate) target: Option<&'a Located<Vec<Located<HostPort>>>>,
    pub(crate) listener: Option<&'a Located<HostPort>>,
    pub(crate) node_ports: Option<&'a Located<PortRange>>,
    pub(crate) admin: Option<&'a Located<HostPort>>,
}

/// No address serves two purposes.
pub(crate) fn addresses(document: &Document<'_>, all: &Addresses<'_>) {
    same_cluster(document, all);
    if let (Some(listener), Some(admin)) = (all.listener, all.admin)
        && listener.value.port == admin.value.port
        && listener.value.shares_host(&admin.value)
    {
        let problem = format!("{} is also `listener.bootstrap`", admin.value);
        document.note(admin.line, "admin.address", problem, "choose another port");
    }
    if let (Some(listener), Some(ports)) = (all.listener, all.node_ports) {
        own_ports(document, listener, ports, all.admin);
    }
    proxy_is_no_broker(document, all);
}

fn same_cluster(document: &Document<'_>, all: &Addresses<'_>) {
    let (Some(source), Some(target)) = (all.source, all.target) else { return };
    for address in &target.value {
        if source.value.iter().any(|other| other.value == address.value) {
            let problem = format!("{} is also in `source.bootstrap`", address.value);
            let remedy = "source and target must be two different clusters";
            document.note(address.line, "target.bootstrap", problem, remedy);
        }
    }
}

fn own_ports(
    document: &Document<'_>,
    listener: &Located<HostPort>,
    ports: &Located<PortRange>,
    admin: Option<&Located<HostPort>>,
) {
    let remedy = "choose a range without it";
    let range = ports.value;
    if range.contains(listener.value.port) {
        let problem = format!("contains the port {} of `listener.bootstrap`", listener.value.port);
        document.note(ports.line, "listener.node_ports", problem, remedy);
    }
    if let Some(admin) = admin.filter(|admin| range_hits(range, &listener.value, &admin.value)) {
        let problem = format!("contains the port {} of `admin.address`", admin.value.port);
        document.note(ports.line, "listener.node_ports", problem, remedy);
    }
}

/// A cluster address that is the proxy's own would make it connect to itself.
fn proxy_is_no_broker(document: &Document<'_>, all: &Addresses<'_>) {
    let Some(listener) = all.listener else { return };
    for (field, cluster) in [("source.bootstrap", all.source), ("target.bootstrap", all.target)] {
        for broker in cluster.into_iter().flat_map(|cluster| &cluster.value) {
            let own = broker.value.port == listener.value.port && broker.value.shares_host(&listener.value);
            let in_range =
                all.node_ports.is_some_and(|ports| range_hits(ports.value, &listener.value, &broker.value));
            // With an unspecified listener every remote broker on the same port would match: only local ones count.
            let local = broker.value.is_loopback() || !listener.value.is_unspecified();
            if (own || in_range) && local {
                let problem = format!("{} is an address Crossover itself listens on", broker.value);
                document.note(broker.line, field, problem, "name brokers, or change `[listener]`");
            }
        }
    }
}

/// No two rules with the same pattern, and no physical topic under two names.
pub(crate) fn routes(document: &Document<'_>, rules: &[Located<RouteRule>]) {
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("route[{}]", index + 1);
        for earlier in rules.iter().take(index) {
            if let Some((what, remedy)) = clash(&earlier.value.pattern, &rule.value.pattern) {
                let problem = format!("{what} of the rule in line {}", earlier.line);
                document.note(rule.line, field.as_str(), problem, remedy);
            }
        }
    }
}

fn clash(earlier: &RoutePattern, rule: &RoutePattern) -> Option<(String, &'static str)> {
    match (earlier, rule) {
        (RoutePattern::Prefix(a), RoutePattern::Prefix(b)) if a == b => {
            Some((format!("has the prefix \"{a}\""), "keep one of the two rules"))
        }
        (
            RoutePattern::Exact { topic: a, source_topic: source_a, target_topic: target_a },
            RoutePattern::Exact { topic: b, source_topic: source_b, target_topic: target_b },
        ) => {
            if a == b {
                return Some((format!("has the topic \"{a}\""), "keep one of the two rules"));
            }
            let shared = if source_a == source_b {
                Some(("source", source_a))
            } else if target_a == target_b {
                Some(("target", target_a))
            } else {
                None
            };
            shared.map(|(side, name)| {
                (format!("uses the {side} topic \"{name}\""), "give each topic its own name in each cluster")
            })
        }
        _ => None,
    }
}
