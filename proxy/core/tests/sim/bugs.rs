//! Deliberately wrong behaviour, one flag at a time. The simulator must notice each of them.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {}
