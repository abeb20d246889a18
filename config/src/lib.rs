//! What an operator writes: one TOML file, read into typed values, with every problem reported at once.

mod conflicts;
mod document;
mod error;
pub mod keys;
mod model;
mod read;
mod reference;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use document::similar;
pub use error::{ConfigErrors, Problem};
pub use model::{
    Admin, Cluster, Config, Fence, HostPort, HostPortError, Limits, Listener, Log, LogFormat, Mode,
    PortRange, RoutePattern, RouteRule, Routing, Secret, SecretError, Side, State, Timeouts,
};
pub use reference::{SMALLEST, reference_markdown};

/// Reads a configuration file. Relative paths in it start at its own directory.
///
/// # Errors
/// Every problem of the file, not only the first; of a file that is no TOML the place where that begins.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path),
        Err(error) => {
            let problem = Problem {
                line: 0,
                column: None,
                field: String::new(),
                problem: format!("the file cannot be read: {error}"),
                remedy: "name an existing file with --config".to_owned(),
            };
            Err(ConfigErrors { file: path.to_owned(), problems: vec![problem] })
        }
    }
}

/// Reads a configuration from a text; `path` is its name in messages, and where relative paths start.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigErrors> {
    let base = path.parent().unwrap_or(Path::new(""));
    let refused = |problems| ConfigErrors { file: path.to_owned(), problems };
    let document = document::Document::parse(text).map_err(|problem| refused(vec![problem]))?;
    match read::config(&document, base) {
        Some(config) => Ok(config),
        None => Err(refused(document.into_problems())),
    }
}
