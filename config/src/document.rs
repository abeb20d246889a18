//! A TOML document read with the line of everything in it. Reading notes problems and goes on, so that all are found.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Problem;
use crate::keys::{self, KEYS, Key, Kind, NOT_BUILT, SECTIONS};
use crate::model::{HostPort, PortRange};

/// A value and the line it stands on.
#[derive(Clone, Debug)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) line: usize,
}

/// The document, and what was found wrong with it so far.
pub(crate) struct Document<'d> {
    text: &'d str,
    root: DeTable<'d>,
    problems: RefCell<Vec<Problem>>,
    /// `section.key` of everything that was asked for; a test compares it with the table of keys.
    asked: RefCell<BTreeSet<String>>,
}

/// One table of the document; an absent table reads like an empty one.
pub(crate) struct Section<'r, 'd> {
    document: &'r Document<'d>,
    /// Name in the table of keys.
    name: &'static str,
    /// Name in messages: `route[2]` for a repeated one.
    pub(crate) path: String,
    pub(crate) line: usize,
    entries: Option<&'r DeTable<'d>>,
}

impl<'d> Document<'d> {
    /// # Errors
    /// It is no TOML. Only the first place is told: what follows it, and what seems to be missing, comes of it.
    pub(crate) fn parse(text: &'d str) -> Result<Document<'d>, Problem> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let first = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start));
        if let Some(error) = first {
            return Err(syntax_error(text, error));
        }
        let document = Document {
            text,
            root: root.into_inner(),
            problems: RefCell::default(),
            asked: RefCell::default(),
        };
        document.refuse_unknown_sections();
        Ok(document)
    }

    pub(crate) fn note(
        &self,
        line: usize,
        field: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (field, problem, remedy) = (field.into(), problem.into(), remedy.into());
        self.problems.borrow_mut().push(Problem { line, column: None, field, problem, remedy });
    }

    /// All problems, in the order of the file.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    pub(crate) fn has_problems(&self) -> bool {
        !self.problems.borrow().is_empty()
    }

    #[cfg(test)]
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    pub(crate) fn section<'r>(&'r self, name: &'static str) -> Section<'r, 'd> {
        let mut section = Section { document: self, name, path: name.to_owned(), line: 1, entries: None };
        if let Some((_, value)) = self.root.iter().find(|(key, _)| key.get_ref().as_ref() == name) {
            section.line = self.line(&value.span());
            match value.get_ref() {
                DeValue::Table(table) => section.entries = Some(table),
                _ => self.note(section.line, name, "is not a table", format!("write it as [{name}]")),
            }
        }
        section.refuse_unknown_keys();
        section
    }

    pub(crate) fn repeated<'r>(&'r self, name: &'static str) -> Vec<Section<'r, 'd>> {
        let found = self.root.iter().find(|(key, _)| key.get_ref().as_ref() == name);
        let Some((_, value)) = found else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let line = self.line(&value.span());
            self.note(line, name, "is a single table", format!("write each one as [[{name}]]"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let line = self.line(&item.span());
            let path = format!("{name}[{}]", index + 1);
            match item.get_ref() {
                DeValue::Table(table) => {
                    let section = Section { document: self, name, path, line, entries: Some(table) };
                    section.refuse_unknown_keys();
                    sections.push(section);
                }
                _ => self.note(line, path, "is not a table", format!("write each one as [[{name}]]")),
            }
        }
        sections
    }

    fn refuse_unknown_sections(&self) {
        for (key, _) in &self.root {
            let name = key.get_ref().as_ref();
            if !SECTIONS.iter().any(|section| section.name == name) {
                let known = SECTIONS.iter().map(|section| section.name);
                self.refuse(name, name, self.line(&key.span()), known);
            }
        }
    }

    /// Notes an unknown name: planned, misspelt or meaningless.
    fn refuse(&self, path: &str, table_path: &str, line: usize, known: impl Iterator<Item = &'static str>) {
        if let Some(planned) = NOT_BUILT.iter().find(|planned| planned.path == table_path) {
            let problem = format!("{} is not built yet", planned.what);
            self.note(line, path, problem, "remove it; Crossover does not run as if it were there");
            return;
        }
        let name = table_path.rsplit('.').next().unwrap_or(table_path);
        let nearest = known.map(|candidate| (distance(candidate, name), candidate)).min();
        let remedy = match nearest {
            Some((changes, candidate)) if changes <= 2 => format!("did you mean `{candidate}`?"),
            _ => "remove it, or see docs/configuration.md for what there is".to_owned(),
        };
        self.note(line, path, "there is no such key", remedy);
    }

    fn line(&self, span: &Range<usize>) -> usize {
        line_of(self.text, span.start)
    }
}

fn syntax_error(text: &str, error: &toml::de::Error) -> Problem {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or_default();
    let column = 1 + before.chars().rev().take_while(|c| *c != '\n').count();
    Problem {
        line: line_of(text, at),
        column: Some(column),
        field: String::new(),
        problem: format!("TOML syntax: {}", error.message().replace('\n', " ")),
        remedy: "correct it there; what stands behind it was not read".to_owned(),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

impl<'r, 'd> Section<'r, 'd> {
    pub(crate) fn note(&self, line: usize, key: &str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.document.note(line, format!("{}.{key}", self.path), problem, remedy);
    }

    /// A list of addresses; `None` after a problem was noted.
    pub(crate) fn addresses(&self, name: &'static str) -> Option<Located<Vec<Located<HostPort>>>> {
        let remedy = "write a list such as [\"broker-1:9092\"]";
        let Some(value) = self.get(name) else {
            self.note(self.line, name, "is missing", remedy);
            return None;
        };
        let line = self.document.line(&value.span());
        let DeValue::Array(items) = value.get_ref() else {
            self.note(line, name, "is not a list", remedy);
            return None;
        };
        if items.is_empty() {
            self.note(line, name, "is an empty list", "name at least one broker");
            return None;
        }
        let mut addresses: Vec<Located<HostPort>> = Vec::new();
        for item in items.iter() {
            let address = self.parse_address(name, item)?;
            if addresses.iter().any(|known| known.value == address.value) {
                self.note(address.line, name, format!("names {} twice", address.value), "name it once");
                return None;
            }
            addresses.push(address);
        }
        Some(Located { value: addresses, line })
    }

    /// One address; `None` after a problem was noted.
    pub(crate) fn address(&self, name: &'static str) -> Option<Located<HostPort>> {
        if let Some(value) = self.get(name) {
            return self.parse_address(name, value);
        }
        let Some(Key { kind: Kind::Address { default: Some(default) }, .. }) = keys::find(self.name, name)
        else {
            self.note(self.line, name, "is missing", "write it as \"host:port\"");
            return None;
        };
        default.parse().ok().map(|value| Located { value, line: self.line })
    }

    pub(crate) fn ports(&self, name: &'static str) -> Option<Located<PortRange>> {
        let Some(Key { kind: Kind::Ports { default }, .. }) = keys::find(self.name, name) else {
            return None;
        };
        let text =
            self.text(name).unwrap_or_else(|| Located { value: (*default).to_owned(), line: self.line });
        let range = PortRange::parse(&text.value);
        if range.is_none() {
            let problem = format!("\"{}\" is not a range of ports", text.value);
            self.note(text.line, name, problem, format!("write it as \"{default}\", from low to high"));
        }
        range.map(|value| Located { value, line: text.line })
    }

    /// A number within the range of its key; the default after a problem was noted.
    pub(crate) fn integer(&self, name: &'static str) -> Located<u64> {
        let Some(Key { kind: Kind::Integer { default, min, max }, .. }) = keys::find(self.name, name) else {
            return Located { value: 0, line: self.line };
        };
        let fallback = Located { value: *default, line: self.line };
        let Some(value) = self.get(name) else { return fallback };
        let line = self.document.line(&value.span());
        let remedy = format!("write a whole number from {min} to {max}");
        let DeValue::Integer(number) = value.get_ref() else {
            self.note(line, name, format!("is {}, not a number", kind_of(value.get_ref())), remedy);
            return fallback;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) if (*min..=*max).contains(&value) => Located { value, line },
            _ => {
                self.note(line, name, format!("{number} is outside the allowed range"), remedy);
                fallback
            }
        }
    }

    /// One of the words of its key; the default after a problem was noted.
    pub(crate) fn choice(&self, name: &'static str) -> Located<String> {
        let Some(Key { kind: Kind::Choice { default, options }, .. }) = keys::find(self.name, name) else {
            return Located { value: String::new(), line: self.line };
        };
        let fallback = Located { value: (*default).to_owned(), line: self.line };
        let Some(text) = self.text(name) else { return fallback };
        if options.contains(&text.value.as_str()) {
            return text;
        }
        let remedy = format!("write \"{}\"", options.join("\" or \""));
        let planned =
            self.name == "route" && name == "mode" && keys::MODES_NOT_BUILT.contains(&text.value.as_str());
        let problem = match planned {
            true => format!("the mode \"{}\" is not built yet", text.value),
            false => format!("\"{}\" is not one of its words", text.value),
        };
        self.note(text.line, name, problem, remedy);
        fallback
    }

    /// A text that is not empty; `None` when absent, and after a problem was noted.
    pub(crate) fn text(&self, name: &'static str) -> Option<Located<String>> {
        let value = self.get(name)?;
        let line = self.document.line(&value.span());
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.note(line, name, "is empty", "write a value, or remove the key");
                None
            }
            DeValue::String(text) => Some(Located { value: text.clone().into_owned(), line }),
            other => {
                self.note(line, name, format!("is {}, not a text", kind_of(other)), "put it in quotes");
                None
            }
        }
    }

    /// A list of Kafka principals (`SecurityUtils.parseKafkaPrincipal`); empty when absent, and after a problem was noted.
    pub(crate) fn principals(&self, name: &'static str) -> Vec<String> {
        let remedy = "write a list such as [\"User:orders\"]";
        let Some(value) = self.get(name) else { return Vec::new() };
        let line = self.document.line(&value.span());
        let DeValue::Array(items) = value.get_ref() else {
            self.note(line, name, format!("is {}, not a list", kind_of(value.get_ref())), remedy);
            return Vec::new();
        };
        let mut principals = Vec::new();
        for item in items.iter() {
            let line = self.document.line(&item.span());
            let text = match item.get_ref() {
                DeValue::String(text) => text.clone().into_owned(),
                other => {
                    self.note(line, name, format!("holds {}, not a principal", kind_of(other)), remedy);
                    continue;
                }
            };
            match text.split_once(':') {
                Some((kind, who)) if !kind.is_empty() && !who.is_empty() => principals.push(text),
                _ => self.note(line, name, format!("\"{text}\" is no principal in Kafka"), remedy),
            }
        }
        principals
    }

    fn parse_address(&self, name: &str, value: &Spanned<DeValue<'d>>) -> Option<Located<HostPort>> {
        let line = self.document.line(&value.span());
        let remedy = "write it as \"host:port\", an IPv6 address as \"[::1]:9092\"";
        let DeValue::String(text) = value.get_ref() else {
            self.note(line, name, format!("holds {}, not an address", kind_of(value.get_ref())), remedy);
            return None;
        };
        match text.parse() {
            Ok(value) => Some(Located { value, line }),
            Err(error) => {
                self.note(line, name, format!("\"{text}\" {error}"), remedy);
                None
            }
        }
    }

    fn get(&self, name: &'static str) -> Option<&'r Spanned<DeValue<'d>>> {
        debug_assert!(
            keys::find(self.name, name).is_some(),
            "{}.{name} is not in the table of keys",
            self.name
        );
        self.document.asked.borrow_mut().insert(format!("{}.{name}", self.name));
        self.entries?.iter().find(|(key, _)| key.get_ref().as_ref() == name).map(|(_, value)| value)
    }

    fn refuse_unknown_keys(&self) {
        for (key, _) in self.entries.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if keys::find(self.name, name).is_none() {
                let known = KEYS.iter().filter(|key| key.section == self.name).map(|key| key.name);
                let line = self.document.line(&key.span());
                self.document.refuse(
                    &format!("{}.{name}", self.path),
                    &format!("{}.{name}", self.name),
                    line,
                    known,
                );
            }
        }
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Those of `names` that somebody may have meant by `name`: at most two characters away, the nearest first, at most
/// `most`.
pub fn similar<'n>(name: &str, names: impl Iterator<Item = &'n str>, most: usize) -> Vec<&'n str> {
    // Names of one or two characters are all near to each other.
    let near = (name.chars().count() / 2).min(2);
    let mut found: Vec<_> = names.map(|other| (distance(other, name), other)).collect();
    found.retain(|(changes, _)| (1..=near).contains(changes));
    found.sort_unstable();
    found.into_iter().take(most).map(|(_, other)| other).collect()
}

/// Levenshtein's distance: single-character changes between two names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((to, diagonal), above) in b.chars().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or(usize::MAX - 1);
            next.push((diagonal + usize::from(from != to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}
