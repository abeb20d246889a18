//! Prints the table of keys as `docs/configuration.md`.

use std::fmt::Write;

use crate::keys::{KEYS, Key, Kind, MODES_NOT_BUILT, NOT_BUILT, SECTIONS};

/// The smallest configuration that works: what DESIGN §7 fixes.
pub const SMALLEST: &str = include_str!("smallest.toml");

/// The whole reference as Markdown. The file in `docs/` is this text; a test compares them.
#[must_use]
pub fn reference_markdown() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Generated from `config/src/keys.rs`: change it there, then run `UPDATE_DOCS=1 cargo test -p crossover-config`.\n\n\
         Crossover reads one TOML file. `crossover check --config FILE` prints every problem in it at once, with line, field and remedy, \
         and then connects to both clusters. A key that is not listed here is an error. \
         Relative paths start at the directory of the file.\n\n\
         ## The smallest file that works\n\n",
    );
    let _ = write!(out, "```toml\n{SMALLEST}```\n");
    for section in SECTIONS {
        let title =
            if section.repeated { format!("[[{}]]", section.name) } else { format!("[{}]", section.name) };
        let _ = write!(out, "\n## `{title}`\n\n{}\n\n", section.doc);
        out.push_str("| key | value | if absent | meaning |\n|---|---|---|---|\n");
        for key in KEYS.iter().filter(|key| key.section == section.name) {
            let (value, absent) = describe(key);
            let _ = writeln!(out, "| `{}` | {value} | {absent} | {} |", key.name, key.doc);
        }
    }
    out.push_str(
        "\n## Not built yet\n\nThese are refused by name; Crossover never runs as if they were there.\n\n",
    );
    for planned in NOT_BUILT {
        let _ = writeln!(out, "* `{}`: {}", planned.path, planned.what);
    }
    let _ = writeln!(out, "* `route.mode` = `{}`", MODES_NOT_BUILT.join("`, `"));
    out
}

fn describe(key: &Key) -> (String, String) {
    let mandatory = || "**mandatory**".to_owned();
    match key.kind {
        Kind::Addresses => ("list of `host:port`, one or more".to_owned(), mandatory()),
        Kind::Address { default } => {
            ("`host:port`".to_owned(), default.map_or_else(mandatory, |text| format!("`{text}`")))
        }
        Kind::Ports { default } => ("`first-last`".to_owned(), format!("`{default}`")),
        Kind::Integer { default, min, max } => (format!("{min} to {max}"), format!("{default}")),
        Kind::Choice { default, options } => (format!("`{}`", options.join("`, `")), format!("`{default}`")),
        Kind::Principals => ("list of `Type:name`".to_owned(), "nobody".to_owned()),
        Kind::Text { absent } => ("text".to_owned(), absent.to_owned()),
        Kind::Path { default, absent } => {
            ("path".to_owned(), default.map_or_else(|| absent.to_owned(), |text| format!("`{text}`")))
        }
    }
}
