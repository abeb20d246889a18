//! The history format: one text line per event (see `README.md`), read as a stream in bounded memory.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// Longest accepted line in bytes.
pub const MAX_LINE: u64 = 1 << 20;

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("line {line}: {source}")]
    Io { line: u64, source: io::Error },
    #[error("line {line}: longer than {MAX_LINE} bytes")]
    TooLong { line: u64 },
    #[error("line {line}: not complete")]
    Truncated { line: u64 },
    #[error("line {line}: {what}")]
    Malformed { line: u64, what: String },
}

/// A partition as written in one history: `topic` indexes [`Start::topics`] of the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    pub topic: u16,
    pub number: u32,
}

/// Effective acknowledgement setting of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    All,
    One,
    Zero,
}

/// The fields of `E.start` the checker uses; empty if absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    pub role: String,
    pub library: String,
    pub version: String,
    pub topics: Vec<String>,
    pub writer: Option<u32>,
    pub acks: Option<Acks>,
    pub group: String,
    pub member: String,
    pub reset: String,
}

/// The totals of `E.end`, as the driver counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    pub sent: Option<u64>,
    pub ok: Option<u64>,
    pub failed: Option<u64>,
    pub polled: Option<u64>,
}

/// One event; field meanings in `README.md`. Times are unix microseconds; an unknown offset is −1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Start(Box<Start>),
    Ok { part: Part, seq: u64, offset: i64, sent_us: i64 },
    Fail { part: Part, seq: u64, code: String, text: String },
    Poll { part: Part, offset: i64, writer: u32, seq: u64, sent_us: Option<i64> },
    Other { part: Part, offset: i64 },
    Misplaced { part: Part, offset: i64, value_part: String },
    Assign(Vec<Part>),
    Revoke(Vec<Part>),
    Lost(Vec<Part>),
    Committed(Vec<(Part, i64)>),
    CommitFailed(String),
    Reset(String),
    ConsumerError(String),
    Error(String),
    Note(String),
    End(End),
}

/// One line: an event and its time in unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub at_us: i64,
    pub event: Event,
}

/// Reads entries one by one. After an error it ends.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    topics: Vec<String>,
    line: u64,
    buffer: Vec<u8>,
    failed: bool,
}

/// Opens a history file.
///
/// # Errors
/// If the file cannot be opened.
pub fn open(path: &Path) -> io::Result<Reader<BufReader<File>>> {
    Ok(Reader::new(BufReader::with_capacity(1 << 18, File::open(path)?)))
}

/// Reads a whole history, for small ones and for [`crate::windows`].
///
/// # Errors
/// The first unreadable line, or the failure to open.
pub fn read(path: &Path) -> Result<Vec<Entry>, HistoryError> {
    open(path).map_err(|source| HistoryError::Io { line: 0, source })?.collect()
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R) -> Self {
        Self { input, topics: Vec::new(), line: 0, buffer: Vec::new(), failed: false }
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, HistoryError> {
        self.buffer.clear();
        self.line += 1;
        let line = self.line;
        let mut limited = (&mut self.input).take(MAX_LINE);
        let read = limited
            .read_until(b'\n', &mut self.buffer)
            .map_err(|source| HistoryError::Io { line, source })?;
        if read == 0 {
            return Ok(None);
        }
        if self.buffer.pop() != Some(b'\n') {
            return Err(if read as u64 == MAX_LINE {
                HistoryError::TooLong { line }
            } else {
                HistoryError::Truncated { line }
            });
        }
        let text = std::str::from_utf8(&self.buffer)
            .map_err(|_| HistoryError::Malformed { line, what: "not UTF-8".to_owned() })?;
        let entry = parse_line(text, &self.topics).map_err(|what| HistoryError::Malformed { line, what })?;
        if let Event::Start(start) = &entry.event {
            self.topics.clone_from(&start.topics);
        }
        Ok(Some(entry))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Entry, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_entry().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

fn parse_line(text: &str, topics: &[String]) -> Result<Entry, String> {
    let mut fields = Fields { rest: text.split('\t'), topics };
    let at_us = fields.number("time")?;
    let event = match fields.text("event")? {
        "E.start" => Event::Start(Box::new(parse_start(&mut fields)?)),
        "P.ok" => Event::Ok {
            part: fields.part()?,
            seq: fields.number("seq")?,
            offset: fields.number("offset")?,
            sent_us: fields.number("sent_us")?,
        },
        "P.fail" => Event::Fail {
            part: fields.part()?,
            seq: fields.number("seq")?,
            code: fields.text("code")?.to_owned(),
            text: fields.optional().to_owned(),
        },
        "C.poll" => Event::Poll {
            part: fields.part()?,
            offset: fields.number("offset")?,
            writer: fields.number("writer")?,
            seq: fields.number("seq")?,
            sent_us: fields.rest.next().and_then(|text| text.parse().ok()),
        },
        "C.other" => Event::Other { part: fields.part()?, offset: fields.number("offset")? },
        "C.misplaced" => Event::Misplaced {
            part: fields.part()?,
            offset: fields.number("offset")?,
            value_part: fields.optional().to_owned(),
        },
        "C.assign" => Event::Assign(fields.parts()?),
        "C.revoke" => Event::Revoke(fields.parts()?),
        "C.lost" => Event::Lost(fields.parts()?),
        "C.commit" => parse_commit(&mut fields)?,
        "C.reset" => Event::Reset(fields.remainder()),
        "C.error" => Event::ConsumerError(fields.remainder()),
        "E.error" => Event::Error(fields.remainder()),
        "E.note" => Event::Note(fields.remainder()),
        "E.end" => Event::End(parse_end(&mut fields)?),
        other => return Err(format!("unknown event {other:?}")),
    };
    Ok(Entry { at_us, event })
}

fn parse_start(fields: &mut Fields<'_>) -> Result<Start, String> {
    let mut start = Start::default();
    for pair in fields.rest.by_ref() {
        let Some((key, value)) = pair.split_once('=') else { continue };
        match key {
            "role" => value.clone_into(&mut start.role),
            "library" => value.clone_into(&mut start.library),
            "version" => value.clone_into(&mut start.version),
            "topic" => start.topics = value.split(',').map(str::to_owned).collect(),
            "writer" => start.writer = Some(value.parse().map_err(|_| "bad writer".to_owned())?),
            "acks" => start.acks = Some(parse_acks(value)?),
            "group" => value.clone_into(&mut start.group),
            "member" => value.clone_into(&mut start.member),
            "reset" => value.clone_into(&mut start.reset),
            _ => {}
        }
    }
    Ok(start)
}

fn parse_acks(text: &str) -> Result<Acks, String> {
    match text {
        "all" | "-1" => Ok(Acks::All),
        "1" => Ok(Acks::One),
        "0" => Ok(Acks::Zero),
        other => Err(format!("bad acks {other:?}")),
    }
}

fn parse_commit(fields: &mut Fields<'_>) -> Result<Event, String> {
    match fields.text("commit result")? {
        "ok" => {
            let list = fields.optional();
            let pairs = list.split(',').filter(|pair| !pair.is_empty());
            let offsets = pairs.map(|pair| {
                let (part, offset) = pair.rsplit_once('=').ok_or_else(|| format!("bad commit {pair:?}"))?;
                let offset = offset.parse().map_err(|_| format!("bad commit {pair:?}"))?;
                Ok((parse_part(part, fields.topics)?, offset))
            });
            Ok(Event::Committed(offsets.collect::<Result<_, String>>()?))
        }
        "fail" => Ok(Event::CommitFailed(fields.remainder())),
        other => Err(format!("bad commit result {other:?}")),
    }
}

fn parse_end(fields: &mut Fields<'_>) -> Result<End, String> {
    let mut end = End::default();
    for pair in fields.rest.by_ref() {
        let Some((key, value)) = pair.split_once('=') else { continue };
        let count = Some(value.parse().map_err(|_| format!("bad count {pair:?}"))?);
        match key {
            "sent" => end.sent = count,
            "ok" => end.ok = count,
            "failed" => end.failed = count,
            "polled" => end.polled = count,
            _ => {}
        }
    }
    Ok(end)
}

fn parse_part(text: &str, topics: &[String]) -> Result<Part, String> {
    let (topic, number) = match text.rsplit_once(':') {
        None => (0, text),
        Some((name, number)) => {
            let index = topics.iter().position(|topic| topic == name);
            (index.ok_or_else(|| format!("unknown topic in {text:?}"))?, number)
        }
    };
    let topic = u16::try_from(topic).map_err(|_| "too many topics".to_owned())?;
    let number = number.parse().map_err(|_| format!("bad partition {text:?}"))?;
    Ok(Part { topic, number })
}

struct Fields<'a> {
    rest: std::str::Split<'a, char>,
    topics: &'a [String],
}

impl<'a> Fields<'a> {
    fn text(&mut self, what: &str) -> Result<&'a str, String> {
        self.rest.next().ok_or_else(|| format!("{what} is missing"))
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String> {
        let text = self.text(what)?;
        text.parse().map_err(|_| format!("bad {what} {text:?}"))
    }

    fn optional(&mut self) -> &'a str {
        self.rest.next().unwrap_or("")
    }

    fn remainder(&mut self) -> String {
        self.rest.by_ref().collect::<Vec<_>>().join(" ")
    }

    fn part(&mut self) -> Result<Part, String> {
        let text = self.text("partition")?;
        parse_part(text, self.topics)
    }

    fn parts(&mut self) -> Result<Vec<Part>, String> {
        let list = self.optional();
        let names = list.split(',').filter(|name| !name.is_empty());
        names.map(|name| parse_part(name, self.topics)).collect()
    }
}

impl Entry {
    /// Writes the line without its end; `topics` as in the history's `E.start`.
    ///
    /// # Errors
    /// Only those of the formatter.
    pub fn write(&self, topics: &[String], out: &mut impl fmt::Write) -> fmt::Result {
        write!(out, "{}\t", self.at_us)?;
        match &self.event {
            Event::Start(start) => write_start(start, out),
            Event::Ok { part, seq, offset, sent_us } => {
                write!(out, "P.ok\t{}\t{seq}\t{offset}\t{sent_us}", name(*part, topics))
            }
            Event::Fail { part, seq, code, text } => {
                write!(out, "P.fail\t{}\t{seq}\t{code}\t{text}", name(*part, topics))
            }
            Event::Poll { part, offset, writer, seq, sent_us } => {
                write!(out, "C.poll\t{}\t{offset}\t{writer}\t{seq}", name(*part, topics))?;
                sent_us.map_or(Ok(()), |sent_us| write!(out, "\t{sent_us}"))
            }
            Event::Other { part, offset } => write!(out, "C.other\t{}\t{offset}", name(*part, topics)),
            Event::Misplaced { part, offset, value_part } => {
                write!(out, "C.misplaced\t{}\t{offset}\t{value_part}", name(*part, topics))
            }
            Event::Assign(parts) => write!(out, "C.assign\t{}", names(parts, topics)),
            Event::Revoke(parts) => write!(out, "C.revoke\t{}", names(parts, topics)),
            Event::Lost(parts) => write!(out, "C.lost\t{}", names(parts, topics)),
            Event::Committed(offsets) => {
                let pairs = offsets.iter().map(|(part, offset)| format!("{}={offset}", name(*part, topics)));
                write!(out, "C.commit\tok\t{}", pairs.collect::<Vec<_>>().join(","))
            }
            Event::CommitFailed(text) => write!(out, "C.commit\tfail\t{text}"),
            Event::Reset(text) => write!(out, "C.reset\t{text}"),
            Event::ConsumerError(text) => write!(out, "C.error\t{text}"),
            Event::Error(text) => write!(out, "E.error\t{text}"),
            Event::Note(text) => write!(out, "E.note\t{text}"),
            Event::End(end) => write_end(end, out),
        }
    }
}

fn write_start(start: &Start, out: &mut impl fmt::Write) -> fmt::Result {
    write!(out, "E.start\trole={}\tlibrary={}\tversion={}", start.role, start.library, start.version)?;
    write!(out, "\ttopic={}", start.topics.join(","))?;
    if let Some(writer) = start.writer {
        write!(out, "\twriter={writer}")?;
    }
    match start.acks {
        None => {}
        Some(Acks::All) => out.write_str("\tacks=all")?,
        Some(Acks::One) => out.write_str("\tacks=1")?,
        Some(Acks::Zero) => out.write_str("\tacks=0")?,
    }
    write!(out, "\tgroup={}\tmember={}\treset={}", start.group, start.member, start.reset)
}

fn write_end(end: &End, out: &mut impl fmt::Write) -> fmt::Result {
    out.write_str("E.end")?;
    let counts = [("sent", end.sent), ("ok", end.ok), ("failed", end.failed), ("polled", end.polled)];
    for (key, count) in counts {
        if let Some(count) = count {
            write!(out, "\t{key}={count}")?;
        }
    }
    Ok(())
}

fn name(part: Part, topics: &[String]) -> String {
    match (part.topic, topics.get(usize::from(part.topic))) {
        (0, _) | (_, None) => part.number.to_string(),
        (_, Some(topic)) => format!("{topic}:{}", part.number),
    }
}

fn names(parts: &[Part], topics: &[String]) -> String {
    parts.iter().map(|part| name(*part, topics)).collect::<Vec<_>>().join(",")
}
