//! What a hurried operator does: commands that are interrupted, flips that are stopped behind a step, raw requests to the
//! admin API, and what `status` says of it all.

use crate::text;
use anyhow::{Context, Result, bail, ensure};
use crossover_harness::rig::{Rig, command};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// PREPARE on a loaded machine.
pub const REACHED_MAX: Duration = Duration::from_secs(40);
/// The hold bound, PREPARE, moves of groups, and a loaded machine.
const ENDED_MAX: Duration = Duration::from_secs(90);
const ANSWER_MAX: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(2);

/// A command that runs.
pub struct Running(Child);

impl Running {
    /// # Errors
    /// It cannot be started.
    pub fn start(rig: &Rig, args: &[&str]) -> Result<Running> {
        let mut command = command(rig, args);
        Ok(Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?))
    }

    /// Sends it a signal, by name.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.0.id(), name)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn ended(mut self, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        while self.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.0.kill()?;
                let output = self.0.wait_with_output()?;
                bail!("the command did not end within {limit:?}: {}", text(&output));
            }
            sleep(LOOK);
        }
        Ok(self.0.wait_with_output()?)
    }

    /// Waits for its end, long enough for any operation.
    ///
    /// # Errors
    /// It does not end.
    pub fn output(self) -> Result<Output> {
        self.ended(ENDED_MAX)
    }
}

/// # Errors
/// The process is gone.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    ensure!(status.success(), "{pid} cannot be sent {name}");
    Ok(())
}

/// Stops flips behind a step until it is dropped.
pub struct Hold {
    hold: PathBuf,
    reached: PathBuf,
}

impl Hold {
    /// # Errors
    /// The folder cannot be written.
    pub fn behind(rig: &Rig, step: &str) -> Result<Hold> {
        let folder = rig.directory.join("failpoints");
        fs::create_dir_all(&folder)?;
        let hold = Hold { hold: folder.join(step), reached: folder.join(format!("{step}.reached")) };
        let _ = fs::remove_file(&hold.reached);
        fs::write(&hold.hold, [])?;
        Ok(hold)
    }

    /// Lets the flip go on.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn go_on(&self) -> Result<()> {
        Ok(fs::remove_file(&self.hold)?)
    }

    /// A flip stands there.
    ///
    /// # Errors
    /// None comes.
    pub fn reached(&self) -> Result<()> {
        self.reached_or(|| false).map(drop)
    }

    /// As [`Hold::reached`]; false where the flip is over before.
    ///
    /// # Errors
    /// Neither happens.
    pub fn reached_or(&self, mut is_over: impl FnMut() -> bool) -> Result<bool> {
        let deadline = Instant::now() + REACHED_MAX;
        while !self.reached.exists() {
            if is_over() {
                return Ok(false);
            }
            ensure!(
                Instant::now() < deadline,
                "{} is not reached: is crossover built with --features failpoints?",
                self.hold.display()
            );
            sleep(LOOK);
        }
        Ok(true)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.hold);
    }
}

/// An answer of the admin API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// A refusal as operators are promised it: a status from 400 to 499, a message and a remedy.
    ///
    /// # Errors
    /// It is something else.
    pub fn refused(&self, status: u16, message: &str) -> Result<()> {
        let said = self.body["message"].as_str().unwrap_or_default();
        let remedy = self.body["remedy"].as_str().unwrap_or_default();
        ensure!(self.status == status, "status {} instead of {status}: {}", self.status, self.body);
        ensure!(said.contains(message), "it does not say {message:?}: {}", self.body);
        ensure!(!remedy.is_empty(), "no remedy: {}", self.body);
        Ok(())
    }
}

/// A request with a JSON body.
///
/// # Errors
/// No answer that is one of HTTP.
pub fn post(rig: &Rig, path: &str, body: &Value) -> Result<Answer> {
    request(rig, "POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

/// Any request. The answer is read also where the server closes before it has taken the whole body.
///
/// # Errors
/// No answer that is one of HTTP.
pub fn request(rig: &Rig, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let address = rig.admin.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    // A reset behind the answer is no matter.
    let read = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {read:?} {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    Ok(Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null) })
}

/// # Errors
/// The proxy does not say.
pub fn status(rig: &Rig) -> Result<Value> {
    let output = rig.crossover(&["status", "--json"])?;
    ensure!(output.status.success(), "no status: {}", text(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// # Errors
/// The proxy does not say.
pub fn revision(rig: &Rig) -> Result<u64> {
    status(rig)?["revision"].as_u64().context("a status without revision")
}

/// What must hold when nothing runs: these topics are owned by this side, which is also the side of their last era; each
/// era begins where the one before it has ended; nothing is frozen, unknown, or an alarm; no operation runs.
///
/// # Errors
/// It does not hold.
pub fn consistent(rig: &Rig, topics: &[&str], owner: &str) -> Result<()> {
    let status = status(rig)?;
    ensure!(status["operation"].is_null(), "an operation runs: {}", status["operation"]);
    ensure!(status["alarms"] == json!([]), "alarms: {}", status["alarms"]);
    let rows = status["topics"].as_array().context("a status without topics")?;
    for topic in topics {
        let row = rows.iter().find(|row| row["name"] == *topic).with_context(|| format!("no {topic}"))?;
        ensure!(row["owner"] == owner, "{topic} is on the {}, not on the {owner}", row["owner"]);
        ensure!(row["frozen"].is_null(), "{topic} is frozen: {}", row["frozen"]);
        ensure!(row["unknown_partitions"] == json!([]), "{topic} has unknown partitions: {row}");
        for partition in row["partitions"].as_array().context("a topic without partitions")? {
            eras_fit(partition, owner).with_context(|| format!("{topic}: {partition}"))?;
        }
    }
    Ok(())
}

fn eras_fit(partition: &Value, owner: &str) -> Result<()> {
    let eras = partition["eras"].as_array().context("no eras")?;
    ensure!(eras.last().is_some_and(|last| last["side"] == owner), "the last era is another side's");
    let number = |era: &Value, field: &str| era[field].as_i64().with_context(|| format!("no {field}"));
    for (era, next) in eras.iter().zip(eras.iter().skip(1)) {
        let length = number(era, "native_end")? - number(era, "native_start")?;
        let meets = number(era, "virtual_start")? + length == number(next, "virtual_start")?;
        ensure!(
            meets && era["side"] != next["side"],
            "era {} does not follow on {}",
            next["index"],
            era["index"]
        );
        ensure!(number(era, "epoch_base")? < number(next, "epoch_base")?, "epochs do not rise");
    }
    Ok(())
}
