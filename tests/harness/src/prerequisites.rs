//! Java and Maven: looked for, installed by the script of the repository where that is allowed, or asked for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::error::{HarnessError, Result};

const OLDEST_JAVA: u32 = 17;
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/prerequisites.sh");

/// Makes sure that Java (17 or newer) and Maven are there.
///
/// # Errors
/// [`HarnessError::Prerequisite`] with the one line to type.
pub fn ensure_prerequisites() -> Result<()> {
    java()?;
    maven().map(|_| ())
}

/// The `java` program to use: `$JAVA_HOME/bin/java`, else the one on the path. At least version 17.
///
/// # Errors
/// [`HarnessError::Prerequisite`] with the one line to type.
pub fn java() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    once(&FOUND, "java", find_java)
}

/// The `mvn` program; needed only while something is not cached.
pub(crate) fn maven() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    once(&FOUND, "mvn", || {
        if run("mvn".as_ref(), "--version").is_some() {
            Ok("mvn".into())
        } else {
            Err("Maven (mvn) is not installed".to_owned())
        }
    })
}

/// Looks, lets the script install what is missing, and looks again.
fn once(
    found: &OnceLock<PathBuf>,
    program: &str,
    find: impl Fn() -> std::result::Result<PathBuf, String>,
) -> Result<PathBuf> {
    if let Some(path) = found.get() {
        return Ok(path.clone());
    }
    let path = find().or_else(|_| {
        install(program);
        find().map_err(|missing| HarnessError::Prerequisite { missing, command: advice(program).to_owned() })
    })?;
    Ok(found.get_or_init(|| path).clone())
}

/// The script says itself what it does; its failure shows in the second look.
fn install(program: &str) {
    if Path::new(SCRIPT).exists() {
        let _ = Command::new("sh").args([SCRIPT, program]).stdin(Stdio::null()).status();
    }
}

fn advice(program: &str) -> &'static str {
    match program {
        "java" => "sudo apt-get install -y openjdk-17-jdk-headless",
        _ => "sudo apt-get install -y maven",
    }
}

fn find_java() -> std::result::Result<PathBuf, String> {
    let home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let mut oldest = None;
    for candidate in home.into_iter().chain(["java".into()]) {
        match run(&candidate, "-version").as_deref().and_then(java_major) {
            Some(major) if major >= OLDEST_JAVA => return Ok(candidate),
            Some(major) => oldest = Some(major),
            None => {}
        }
    }
    Err(match oldest {
        Some(major) => format!("Java {major} is too old, {OLDEST_JAVA} or newer is needed"),
        None => "Java is not installed".to_owned(),
    })
}

/// What a program says, `None` if it cannot be run or fails.
fn run(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).into_owned())
}

/// `openjdk version "17.0.15"` is 17; before Java 9 it read `"1.8.0_402"`, which is 1 here and too old either way.
fn java_major(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("version \"")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::java_major;

    #[test]
    fn the_major_version_is_read_from_what_java_says() {
        assert_eq!(java_major("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK"), Some(17));
        assert_eq!(java_major("java version \"1.8.0_402\""), Some(1));
        assert_eq!(java_major("openjdk version \"25\" 2025-09-16"), Some(25));
        assert_eq!(java_major("command not found"), None);
    }
}
