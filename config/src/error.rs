//! What is wrong with a configuration file, in the operator's words.

use std::fmt;
use std::path::PathBuf;

/// One problem at one place of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// 1-based line in the file; for something that is missing, the line of its section, or 1; 0 where it is about the
    /// file itself.
    pub line: usize,
    /// 1-based character in the line; of a syntax error only, where the field does not tell the place.
    pub column: Option<usize>,
    /// Path of the field, `listener.node_ports` or `route[2].topic`; empty for a syntax error.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

/// Every problem of one file, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    pub file: PathBuf,
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    /// One line per problem: `file:line: field: problem; remedy`, a syntax error with its column behind the line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file.display())?;
            if problem.line > 0 {
                write!(f, "{}:", problem.line)?;
            }
            if let Some(column) = problem.column {
                write!(f, "{column}:")?;
            }
            write!(f, " ")?;
            if !problem.field.is_empty() {
                write!(f, "{}: ", problem.field)?;
            }
            write!(f, "{}; {}", problem.problem, problem.remedy)?;
        }
        Ok(())
    }
}
