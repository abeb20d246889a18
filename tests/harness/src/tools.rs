//! Kafka's own command line tools.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{HarnessError, IoContext, Result};
use crate::kafka::Kafka;
use crate::process;

const HEAP_MB: u16 = 128;
/// A tool that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// The classes behind the scripts in Kafka's `bin`, newest first: the tools move from `kafka.admin` to
/// `org.apache.kafka.tools` from release to release.
const CLASSES: [(&str, &[&str]); 9] = [
    ("kafka-topics", &["org.apache.kafka.tools.TopicCommand", "kafka.admin.TopicCommand"]),
    (
        "kafka-consumer-groups",
        &["org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "kafka.admin.ConsumerGroupCommand"],
    ),
    ("kafka-console-producer", &["org.apache.kafka.tools.ConsoleProducer", "kafka.tools.ConsoleProducer"]),
    (
        "kafka-console-consumer",
        &["org.apache.kafka.tools.consumer.ConsoleConsumer", "kafka.tools.ConsoleConsumer"],
    ),
    ("kafka-get-offsets", &["org.apache.kafka.tools.GetOffsetShell", "kafka.tools.GetOffsetShell"]),
    ("kafka-configs", &["org.apache.kafka.tools.ConfigCommand", "kafka.admin.ConfigCommand"]),
    (
        "kafka-leader-election",
        &["org.apache.kafka.tools.LeaderElectionCommand", "kafka.admin.LeaderElectionCommand"],
    ),
    (
        "kafka-reassign-partitions",
        &[
            "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
            "kafka.admin.ReassignPartitionsCommand",
        ],
    ),
    ("kafka-acls", &["org.apache.kafka.tools.AclCommand", "kafka.admin.AclCommand"]),
];

/// Resolves `version` and runs one of its tools; see [`Kafka::run_tool`].
///
/// # Errors
/// As [`Kafka::resolve`] and [`Kafka::run_tool`].
pub fn run_tool(version: &str, tool: &str, args: &[&str], stdin: Option<&str>) -> Result<Output> {
    Kafka::resolve(version)?.run_tool(tool, args, stdin)
}

impl Kafka {
    /// Runs a tool by its script's name (`kafka-topics`) or by its class, and returns what it said. The exit status is
    /// the caller's to judge. Costs a JVM start of 1–2 s.
    ///
    /// # Errors
    /// An unknown tool, or one that takes longer than 120 s.
    pub fn run_tool(&self, tool: &str, args: &[&str], stdin: Option<&str>) -> Result<Output> {
        let class = self.tool_class(tool)?;
        let mut command = process::java(HEAP_MB, &self.classpath(), &class)?;
        let input = if stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        command.args(args).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process::spawn(command, tool)?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), stdin.map(str::to_owned)) {
            // Detached: a tool that ends without reading breaks the pipe, which is its right.
            thread::spawn(move || pipe.write_all(text.as_bytes()));
        }
        let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let status = wait(&mut child, tool);
        let (stdout, stderr) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        Ok(Output { status: status?, stdout, stderr })
    }

    /// The class of a tool in these jars; a name with a dot is a class already.
    fn tool_class(&self, tool: &str) -> Result<String> {
        if tool.contains('.') {
            return Ok(tool.to_owned());
        }
        let candidates =
            CLASSES.iter().find(|(name, _)| *name == tool).map_or(&[][..], |(_, classes)| *classes);
        for class in candidates {
            if self.contains(class)? {
                return Ok((*class).to_owned());
            }
        }
        Err(HarnessError::NoSuchTool { version: self.version.to_string(), tool: tool.to_owned() })
    }

    /// A jar's directory holds the names of its files as plain bytes.
    fn contains(&self, class: &str) -> Result<bool> {
        let entry = format!("{}.class", class.replace('.', "/"));
        let modules =
            [format!("kafka-tools-{}.jar", self.version), format!("kafka_2.13-{}.jar", self.version)];
        for jar in self.jars.iter().filter(|jar| modules.iter().any(|module| jar.ends_with(module))) {
            let bytes = fs::read(jar).context("read", jar)?;
            if bytes.windows(entry.len()).any(|window| window == entry.as_bytes()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before a failure is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child, tool: &str) -> Result<std::process::ExitStatus> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            outcome => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(match outcome {
                    Err(source) => HarnessError::Io { action: format!("wait for {tool}"), source },
                    _ => HarnessError::Timeout {
                        what: format!("the end of {tool}"),
                        after: LIMIT,
                        last: String::new(),
                    },
                });
            }
        }
    }
}
