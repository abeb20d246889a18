use std::ffi::OsString;
use std::path::PathBuf;

use crate::cache;
use crate::error::Result;
use crate::version::Version;

/// The jars of one Kafka version, verified, on this machine.
#[derive(Debug, Clone)]
pub struct Kafka {
    pub version: Version,
    pub(crate) jars: Vec<PathBuf>,
}

impl Kafka {
    /// Brokers and command line tools of `version`, such as `4.3.1`.
    ///
    /// The first call fetches them from Maven Central into the cache (`$CROSSOVER_CACHE`, else
    /// `~/.cache/crossover`); later ones need neither network nor Maven. Two processes do not fetch at once.
    ///
    /// # Errors
    /// A malformed version, missing Maven, a failed download, an unusable cache.
    pub fn resolve(version: &str) -> Result<Self> {
        let version = version.parse()?;
        // The tools are a module of their own; ZooKeeper comes with the brokers that need it.
        let artifacts = ["org.apache.kafka:kafka_2.13", "org.apache.kafka:kafka-tools"];
        Ok(Self { version, jars: cache::jars("kafka", version, &artifacts)? })
    }

    /// All jars, joined for `java -cp` or `CLASSPATH`.
    pub fn classpath(&self) -> OsString {
        join(&self.jars)
    }
}

/// The class path of the Java client of `version` alone (`kafka-clients` and a logger), resolved like
/// [`Kafka::resolve`].
///
/// # Errors
/// As [`Kafka::resolve`].
pub fn clients_classpath(version: &str) -> Result<OsString> {
    let jars = cache::jars("clients", version.parse()?, &["org.apache.kafka:kafka-clients"])?;
    Ok(join(&jars))
}

fn join(jars: &[PathBuf]) -> OsString {
    let mut text = OsString::new();
    for jar in jars {
        if !text.is_empty() {
            text.push(":");
        }
        text.push(jar);
    }
    text
}
