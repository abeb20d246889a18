use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;
use crate::document::Document;
use crate::keys::KEYS;

/// The problems of a text as printed, without the file name.
fn problems(text: &str) -> Vec<String> {
    let errors = parse(text, Path::new("x.toml")).expect_err("the text has problems");
    errors.to_string().lines().map(|line| line.trim_start_matches("x.toml:").to_owned()).collect()
}

fn with_smallest(more: &str) -> String {
    format!("{SMALLEST}\n{more}")
}

/// Exactly one problem, which says all of `words`.
fn one_problem(text: &str, words: &[&str]) {
    let found = problems(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    for word in words {
        assert!(found[0].contains(word), "{word:?} is not in {:?}", found[0]);
    }
}

fn replaced(from: &str, to: &str) -> String {
    assert!(SMALLEST.contains(from), "{from} is in the smallest configuration");
    SMALLEST.replace(from, to)
}

#[test]
fn the_smallest_configuration_works() {
    let config = parse(SMALLEST, Path::new("etc/x.toml")).expect("valid");
    assert_eq!(config.source.bootstrap, vec!["127.0.0.1:19092".parse().expect("address")]);
    assert_eq!(config.cluster(Side::Target).bootstrap[0].port, 29092);
    assert_eq!(config.listener.bootstrap.to_string(), "127.0.0.1:9092");
    assert_eq!(config.listener.node_ports, PortRange { first: 9100, last: 9199 });
    assert_eq!(config.listener.node_ports.count(), 100);
    assert_eq!(config.listener.advertised_host, "127.0.0.1");
    assert_eq!(config.limits.frame_bytes_max, 104_857_600);
    assert_eq!(config.limits.in_flight_requests_max, 128);
    assert_eq!(config.limits.hold_max.as_millis(), 5_000);
    assert_eq!(config.routing, Routing { default_side: Side::Source, routes: Vec::new() });
    assert_eq!(config.admin.address.port, 8080);
    assert_eq!(config.admin.token, None);
    assert_eq!(config.state.directory, PathBuf::from("etc/crossover-state"));
    assert_eq!(config.log, Log { filter: "info".into(), format: LogFormat::Text });
}

#[test]
fn every_problem_is_reported_at_once_with_its_line_and_a_remedy() {
    let text = "[source]\nbootstrap = [\"broker\"]\n\n[target]\nbootstrap = []\nretires = 3\n\n[listener]\nbootstrap = 9092\n\
                [limits]\nhold_ms_max = 9000\n[listner]\n";
    let found = problems(text);
    let expected = [
        "2: source.bootstrap: \"broker\" has no port",
        "5: target.bootstrap: is an empty list",
        "6: target.retires: there is no such key",
        "9: listener.bootstrap: holds a number, not an address",
        "11: limits.hold_ms_max: 9000 is outside the allowed range; write a whole number from 100 to 8000",
        "12: listner: there is no such key; did you mean `listener`?",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, start) in found.iter().zip(expected) {
        assert!(line.starts_with(start), "{line:?} does not start with {start:?}");
    }
}

#[test]
fn missing_mandatory_keys_are_named() {
    let found = problems("[target]\n");
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("1: source.bootstrap: is missing; ")));
    assert!(found.iter().any(|line| line.starts_with("1: target.bootstrap: is missing; ")));
    assert!(found.iter().any(|line| line.starts_with("1: listener.bootstrap: is missing; ")));
}

#[test]
fn a_syntax_error_is_one_problem_with_its_place() {
    one_problem(&with_smallest("[log]\nfilter = \n"), &["18:10: TOML syntax: ", "; correct it there"]);
    // A quote that is not closed spoils everything behind it: of what comes of that, nothing is told.
    let open = replaced("\"127.0.0.1:19092\"", "\"127.0.0.1:19092");
    one_problem(&open, &["2:31: TOML syntax"]);
    one_problem("what is this?\n{}\n[[[\n", &["1:", "TOML syntax"]);
}

#[test]
fn names_that_somebody_may_have_meant_are_found() {
    let names = || ["orders", "order", "orders-v2", "payments"].into_iter();
    assert_eq!(similar("ordesr", names(), 3), ["order", "orders"]);
    assert_eq!(similar("ordesr", names(), 1), ["order"]);
    assert!(similar("orders", ["orders"].into_iter(), 3).is_empty(), "that is the name itself");
    assert!(similar("a", ["b", "c"].into_iter(), 3).is_empty());
}

#[test]
fn a_file_that_is_not_there_is_a_problem_too() {
    let errors = load(Path::new("no/such/file.toml")).expect_err("absent");
    assert!(errors.to_string().starts_with("no/such/file.toml: the file cannot be read"));
}

#[test]
fn r33_what_is_not_built_is_refused_by_name() {
    for planned in keys::NOT_BUILT {
        let (table, key) = planned.path.split_once('.').unwrap_or((planned.path, ""));
        let text = match key {
            "" => with_smallest(&format!("[{table}]\n")),
            _ if SMALLEST.contains(&format!("[{table}]")) => with_smallest(&format!("[{table}.{key}]\n")),
            _ => with_smallest(&format!("[{table}]\n{key} = true\n")),
        };
        one_problem(&text, &[planned.path, planned.what, "is not built yet"]);
    }
    one_problem(
        &with_smallest("[[route]]\ntopic = \"a\"\nmode = \"copy\"\n"),
        &["route[1].mode", "not built yet"],
    );
}

#[test]
fn r34_admin_beyond_this_machine_needs_a_token() {
    let open = replaced("address = \"127.0.0.1:8080\"", "address = \"0.0.0.0:8080\"");
    one_problem(&open, &["12: admin.address: ", "without authentication", "admin.token_file"]);
    let named = replaced("address = \"127.0.0.1:8080\"", "address = \"proxy.example:8080\"");
    one_problem(&named, &["admin.address"]);
    assert!(parse(&replaced("127.0.0.1:8080", "[::1]:8080"), Path::new("x.toml")).is_ok());
    assert!(parse(&replaced("127.0.0.1:8080", "localhost:8080"), Path::new("x.toml")).is_ok());

    let directory = std::env::temp_dir().join(format!("crossover-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("directory");
    std::fs::write(directory.join("token"), "s3cret\n").expect("token");
    let text = open.replace("[state]", "token_file = \"token\"\n[state]");
    let config = parse(&text, &directory.join("x.toml")).expect("valid");
    assert_eq!(config.admin.token.as_ref().map(Secret::expose), Some("s3cret"));
    assert!(!format!("{config:?}").contains("s3cret"), "a secret is never printed");
    std::fs::write(directory.join("token"), " \n").expect("token");
    let errors = parse(&text, &directory.join("x.toml")).expect_err("empty token");
    assert!(errors.to_string().contains("admin.token_file: the file token is empty"), "{errors}");
    std::fs::remove_dir_all(&directory).expect("removed");
}

#[test]
fn unspecified_listener_needs_an_advertised_host() {
    let open = replaced("\"127.0.0.1:9092\"", "\"0.0.0.0:9092\"");
    one_problem(&open, &["8: listener.bootstrap: ", "advertised_host"]);
    let named = open.replace("[admin]", "advertised_host = \"kafka.example\"\n[admin]");
    let config = parse(&named, Path::new("x.toml")).expect("valid");
    assert_eq!(config.listener.advertised_host, "kafka.example");
    one_problem(
        &open.replace("[admin]", "advertised_host = \"0.0.0.0\"\n[admin]"),
        &["advertised_host", "reach"],
    );
}

#[test]
fn addresses_that_serve_two_purposes_are_refused() {
    one_problem(
        &replaced("127.0.0.1:29092", "127.0.0.1:19092"),
        &["5: target.bootstrap", "two different clusters"],
    );
    one_problem(&replaced("127.0.0.1:8080", "127.0.0.1:9092"), &["admin.address", "listener.bootstrap"]);
    one_problem(&replaced("127.0.0.1:8080", "127.0.0.1:9100"), &["listener.node_ports", "admin.address"]);
    one_problem(&replaced("9100-9199", "9000-9199"), &["listener.node_ports", "9092"]);
    one_problem(&replaced("127.0.0.1:19092", "127.0.0.1:9092"), &["source.bootstrap", "itself listens"]);
    one_problem(&replaced("127.0.0.1:19092", "localhost:9150"), &["source.bootstrap", "itself listens"]);
    one_problem(&replaced("9100-9199", "9199-9100"), &["listener.node_ports", "from low to high"]);
}

#[test]
fn routes_are_read_and_conflicts_refused() {
    let text = with_smallest(
        "[[route]]\ntopic = \"orders\"\nside = \"target\"\ntarget_topic = \"orders.v2\"\n[[route]]\nprefix = \"audit.\"\nmode = \"identity\"\n",
    );
    let config = parse(&text, Path::new("x.toml")).expect("valid");
    let orders = RoutePattern::Exact {
        topic: "orders".into(),
        source_topic: "orders".into(),
        target_topic: "orders.v2".into(),
    };
    let expected = [
        RouteRule { pattern: orders, side: Side::Target, mode: Mode::Continue },
        RouteRule {
            pattern: RoutePattern::Prefix("audit.".into()),
            side: Side::Source,
            mode: Mode::Identity,
        },
    ];
    assert_eq!(config.routing.routes, expected);

    let route = |text: &str| with_smallest(&format!("[[route]]\ntopic = \"a\"\n[[route]]\n{text}\n"));
    one_problem(&route("topic = \"a\""), &["route[2]: has the topic \"a\" of the rule in line"]);
    one_problem(&route("topic = \"b\"\nsource_topic = \"a\""), &["route[2]: uses the source topic \"a\""]);
    one_problem(&route("prefix = \"p\"\ntopic = \"b\""), &["route[2].prefix", "keep one"]);
    one_problem(&route("prefix = \"p\"\nsource_topic = \"b\""), &["route[2].source_topic", "needs `topic`"]);
    one_problem(&route("side = \"target\""), &["route[2].topic: is missing"]);
    one_problem(&route("topic = \"a b\""), &["route[2].topic", "no topic name in Kafka"]);
    one_problem(&route("topic = \"b\"\nside = \"left\""), &["route[2].side", "\"source\" or \"target\""]);
    one_problem(&with_smallest("[route]\ntopic = \"a\""), &["route: is a single table", "[[route]]"]);
}

#[test]
fn limits_must_fit_each_other() {
    let text = with_smallest("[limits]\nbuffered_bytes_max = 2000000\n");
    one_problem(&text, &["18: limits.buffered_bytes_max", "frame_bytes_max"]);
    one_problem(
        &with_smallest("[limits]\nin_flight_requests_max = -1\n"),
        &["in_flight_requests_max: -1 is outside"],
    );
    one_problem(&with_smallest("[limits]\nin_flight_requests_max = \"8\"\n"), &["is a text, not a number"]);
}

#[test]
fn host_and_port_are_parsed_exactly() {
    for (text, shown) in [("a-b.example:1", "a-b.example:1"), ("[::1]:9092", "[::1]:9092")] {
        assert_eq!(text.parse::<HostPort>().expect("valid").to_string(), shown);
    }
    for (text, error) in [
        ("host", HostPortError::PortMissing),
        ("host:", HostPortError::PortInvalid),
        ("host:0", HostPortError::PortInvalid),
        ("host:+1", HostPortError::PortInvalid),
        ("host:65536", HostPortError::PortInvalid),
        (":9092", HostPortError::HostMissing),
        ("::1:9092", HostPortError::HostInvalid),
        ("[::1]", HostPortError::PortMissing),
        ("http://host:1", HostPortError::HostInvalid),
    ] {
        assert_eq!(text.parse::<HostPort>(), Err(error), "{text}");
    }
}

#[test]
fn the_table_of_keys_is_what_is_read() {
    let text = with_smallest("[[route]]\ntopic = \"a\"\n");
    let document = Document::parse(&text).expect("TOML");
    assert!(read::config(&document, Path::new("")).is_some());
    let known: BTreeSet<String> = KEYS.iter().map(|key| format!("{}.{}", key.section, key.name)).collect();
    assert_eq!(document.asked(), known);
    assert_eq!(known.len(), KEYS.len(), "no key is listed twice");
}

#[test]
fn the_reference_in_docs_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let wanted = reference_markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/configuration.md is stale: run UPDATE_DOCS=1 cargo test -p crossover-config"
    );
}

#[test]
fn principals_that_are_kept_out() {
    let text = with_smallest("[fence]\ndeny_write = [\"User:orders\", \"User:CN=a,OU=b\"]\n");
    let config = parse(&text, Path::new("x.toml")).expect("valid");
    assert_eq!(config.fence.deny_write, ["User:orders", "User:CN=a,OU=b"]);
    one_problem(
        &with_smallest("[fence]\ndeny_write = [\"orders\"]\n"),
        &["fence.deny_write: \"orders\" is no principal", "User:orders"],
    );
    one_problem(&with_smallest("[fence]\ndeny_write = \"User:a\"\n"), &["is a text, not a list"]);
}
