//! The dependency arrows between our crates, and the purity of the core.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Every arrow there may be, as (crate, what it uses). The one to the harness: `docs/adr/0005-harness-in-the-binary.md`.
const ARROWS: [(&str, &str); 6] = [
    ("crossover", "crossover-config"),
    ("crossover", "crossover-core"),
    ("crossover", "crossover-admin-api"),
    ("crossover", "crossover-harness"),
    ("crossover-admin-api", "crossover-core"),
    ("crossover-tests", "crossover-harness"),
];

/// What the core may use from outside: data structures, a checksum, an error derive.
const CORE_USES: [&str; 3] = ["bytes", "crc32c", "thiserror"];

/// Sockets, files, clocks, threads, randomness, logging and runtimes; `::*` of a parent is found as the parent itself.
const IMPURE: [&str; 16] = [
    "std::net",
    "std::fs",
    "std::env",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::*",
    "std::*",
    "tokio",
    "tracing",
    "getrandom",
];
const IMPURE_WORDS: [&str; 8] =
    ["rand", "log", "println!", "print!", "eprintln!", "eprint!", "dbg!", "RandomState"];

fn repository() -> PathBuf {
    crossover_tests::repository()
}

/// Our crates by name with their dependencies of every kind, as the manifests say.
/// A crate and its dependencies, each with whether it is for development only.
type Manifest = (String, Vec<(String, bool)>);

fn manifests() -> Result<Vec<Manifest>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let output = cargo.current_dir(repository()).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let name = |value: &Value| value["name"].as_str().map(str::to_owned).context("a package without a name");
    let packages = metadata["packages"].as_array().context("no packages")?;
    let crates = packages.iter().map(|package| {
        let uses = package["dependencies"].as_array().context("no dependencies")?.iter();
        let uses = uses.map(|used| Ok((name(used)?, used["kind"] == "dev"))).collect::<Result<_>>()?;
        Ok((name(package)?, uses))
    });
    crates.collect()
}

#[test]
fn no_other_arrow_between_our_crates() -> Result<()> {
    let crates = manifests()?;
    let ours: BTreeSet<&str> = crates.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        ours.len() == 8,
        "a crate came or went: {ours:?}; say here and in ARCHITECTURE.md what it may use"
    );
    for (name, uses) in &crates {
        for (used, _) in uses.iter().filter(|(used, _)| ours.contains(used.as_str())) {
            ensure!(
                ARROWS.contains(&(name.as_str(), used.as_str())),
                "{name} → {used} is not an arrow of ARCHITECTURE.md"
            );
        }
    }
    Ok(())
}

#[test]
fn the_core_uses_nothing_that_could_do_input_or_output() -> Result<()> {
    let crates = manifests()?;
    let (_, uses) = crates.iter().find(|(name, _)| name == "crossover-core").context("no core")?;
    for (used, _) in uses.iter().filter(|(_, dev)| !dev) {
        ensure!(CORE_USES.contains(&used.as_str()), "the core uses {used}");
    }
    Ok(())
}

/// Rules that tests break on purpose are whole in every build for use (`docs/adr/0008-bug-flags.md`).
#[test]
fn no_manifest_breaks_rules_on_purpose() -> Result<()> {
    let mut manifests = Vec::new();
    let ours = ["", "config", "proxy", "proxy/core", "admin-api", "loadtest", "tests"];
    for part in ours.into_iter().chain(["tests/harness", "tests/mutants"]) {
        manifests.push(repository().join(part).join("Cargo.toml"));
    }
    for manifest in manifests {
        let text = std::fs::read_to_string(&manifest)?;
        let named = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for line in named.filter(|line| line.contains("bug-flags")) {
            let declared = ["bug-flags = []", "bug-flags = [\"crossover-core/bug-flags\"]"];
            ensure!(declared.contains(&line), "{}: {line}", manifest.display());
        }
    }
    Ok(())
}

#[test]
fn the_core_is_pure() -> Result<()> {
    let mut files = Vec::new();
    collect(&repository().join("proxy/core/src"), &mut files)?;
    ensure!(files.len() > 50, "only {} files of the core were found", files.len());
    let mut found = Vec::new();
    for file in files {
        let impure = impurities(&std::fs::read_to_string(&file)?);
        found.extend(impure.into_iter().map(|what| format!("{}: {what}", file.display())));
    }
    ensure!(found.is_empty(), "the core is not pure:\n{}", found.join("\n"));
    Ok(())
}

#[test]
fn impurities_are_found() {
    let impure = [
        "use std::net::TcpStream;",
        "use std::{collections::BTreeMap, fs};",
        "use std::time::{Duration, Instant};",
        "use std::time::*;",
        "fn f() { let _ = std::time::SystemTime::now(); }",
        "use tokio::sync::Mutex;",
        "fn f() { tracing::info!(\"x\"); }",
        "fn f() { println!(\"x\"); }",
        "use rand::Rng;",
        "fn f() { std :: thread :: sleep(d); }",
        "#[cfg(not(test))]\nfn f() { std::env::var(\"x\"); }",
        "#[cfg(test)]\nmod tests;\nuse std::fs;",
    ];
    for text in impure {
        assert!(!impurities(text).is_empty(), "{text}");
    }
    let pure = [
        "use std::time::Duration; // not std::time::Instant",
        "/// Unlike tokio::sync.\nfn operand() -> &'static str { \"std::fs\" }",
        "use std::net_like::x; fn random() {} fn catalog() {}",
        "#[cfg(test)]\nmod tests {\n    #[test]\n    fn f() { std::fs::read(\"{\"); }\n}\n",
    ];
    for text in pure {
        assert_eq!(impurities(text), Vec::<String>::new(), "{text}");
    }
}

/// The name an operator reads is the heading they look for.
#[test]
fn every_check_and_alarm_has_a_section_in_the_runbook() -> Result<()> {
    let mut files = Vec::new();
    collect(&repository().join("proxy/src"), &mut files)?;
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        for call in ["checks.add(", "checks.judge(", ".alarm("] {
            let arguments =
                text.split(call).skip(1).map(|rest| rest.trim_start().trim_start_matches("&format!("));
            let calls = arguments.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
            names.extend(calls.map(str::to_owned));
        }
    }
    ensure!(names.len() > 12, "only {names:?} were found");
    let runbook = std::fs::read_to_string(repository().join("docs/runbook.md"))?;
    let headings: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let named = |name: &str| {
        let mut headings = headings.iter().map(|heading| heading.trim_end_matches(" †"));
        headings.any(|heading| heading == name || heading.split(", ").any(|part| part == name))
    };
    for name in names.iter().flat_map(|name| match name.strip_prefix("{side}") {
        Some(rest) => vec![format!("source{rest}"), format!("target{rest}")],
        None => vec![name.clone()],
    }) {
        ensure!(named(&name), "docs/runbook.md has no section {name}");
    }
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        // Test modules may read files.
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs")
            && path.file_stem().is_some_and(|s| s != "tests")
        {
            files.push(path);
        }
    }
    Ok(())
}

/// What a source text names that the core must not use; its test modules may.
fn impurities(text: &str) -> Vec<String> {
    let code = without_tests(&blank(text));
    let tight: String =
        code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::").replace(":: ", "::");
    let mut named: Vec<String> = tight.split("use ").skip(1).flat_map(imports).collect();
    named.extend(paths(&tight));
    let mut found: BTreeSet<String> = BTreeSet::new();
    for path in named {
        let below = |forbidden: &str| path == forbidden || path.starts_with(&format!("{forbidden}::"));
        found.extend(IMPURE.iter().filter(|forbidden| below(forbidden)).map(|_| path.clone()));
        let first = path.split("::").next().unwrap_or_default();
        found.extend(IMPURE_WORDS.iter().filter(|word| **word == first).map(|_| path.clone()));
    }
    found.into_iter().collect()
}

/// Every path that one `use` tree names.
fn imports(rest: &str) -> Vec<String> {
    fn expand(prefix: &str, tree: &str, all: &mut Vec<String>) {
        let tree = tree.trim();
        match tree.split_once('{') {
            None => all.push(format!("{prefix}{}", tree.split(" as ").next().unwrap_or_default().trim())),
            Some((head, inner)) => {
                let prefix = format!("{prefix}{}", head.trim());
                let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
                split_top(inner).into_iter().for_each(|part| expand(&prefix, part, all));
            }
        }
    }
    let mut all = Vec::new();
    expand("", rest.split(';').next().unwrap_or_default(), &mut all);
    all
}

/// At commas outside braces.
fn split_top(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Everything that looks like a path or a macro.
fn paths(code: &str) -> Vec<String> {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '!');
    code.split(|c| !part(c))
        .filter(|path| path.contains("::") || path.ends_with('!'))
        .map(str::to_owned)
        .collect()
}

/// Comments and the insides of strings become spaces; lengths and lines stay.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out: Vec<u8> = bytes.to_vec();
    let mut wipe = |from: usize, to: usize| {
        out[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let end = if rest.starts_with(b"//") {
            at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            at + rest.windows(2).position(|two| two == b"*/").map_or(rest.len(), |end| end + 2)
        } else if rest[0] == b'"' {
            at + string_end(rest)
        } else if rest.starts_with(b"'\"'") || rest.starts_with(b"'{'") || rest.starts_with(b"'}'") {
            at + 3
        } else {
            at += 1;
            continue;
        };
        wipe(at, end);
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn string_end(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Without the items behind `#[cfg(test)]`: a body in braces, or `mod tests;`.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        out.push_str(before);
        let end = after.find([';', '{']).unwrap_or(after.len());
        rest = match after[end..].starts_with('{') {
            true => &after[end + block_length(&after[end..])..],
            false => after.get(end + 1..).unwrap_or_default(),
        };
    }
    out.push_str(rest);
    out
}

/// Of a text that starts with a brace: up to its partner.
fn block_length(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}
