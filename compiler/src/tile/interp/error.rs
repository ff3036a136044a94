//! What can go wrong in a run: always with the user's names and values.

use crate::source::Span;
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub struct InterpError {
    pub kind: ErrorKind,
    pub span: Span,
    /// Who was running: `CTA 3, role load`.
    pub place: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ErrorKind {
    /// The arguments do not fit the kernel; nothing ran.
    Arguments(String),
    OutOfBounds {
        name: String,
        axis: usize,
        index: i64,
        extent: u64,
        write: bool,
    },
    /// A gather index at or past the extent.
    GatherPastEnd {
        name: String,
        axis: usize,
        index: i64,
        extent: u64,
    },
    /// A missing row (gather index below 0) where the copy does not say what that gives.
    Missing {
        name: String,
    },
    /// Read before anything was written.
    Uninitialised {
        name: String,
        element: Vec<i64>,
    },
    /// Two agents touch one element with no order between them.
    Race {
        name: String,
        element: Vec<i64>,
        wrote_now: bool,
        other: String,
        other_wrote: bool,
    },
    /// Two points of one `map` touch one element.
    MapRace {
        name: String,
        element: Vec<i64>,
    },
    ScatterCollision {
        name: String,
        element: Vec<i64>,
        other: String,
    },
    Assert(String),
    /// An `assume` that does not hold.
    Assume,
    DivisionByZero,
    ShiftPastWidth,
    IndexOverflow,
    /// Everyone waits: one line for each, with what for.
    Deadlock(Vec<String>),
    /// A compiler bug or something the interpreter has no meaning for.
    Unsupported(String),
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ErrorKind::*;
        match self {
            Arguments(m) | Unsupported(m) => f.write_str(m),
            OutOfBounds {
                name,
                axis,
                index,
                extent,
                write,
            } => {
                let verb = if *write { "writes" } else { "reads" };
                write!(
                    f,
                    "{verb} `{name}` at {index} of axis {axis}, whose extent is {extent}"
                )
            }
            GatherPastEnd {
                name,
                axis,
                index,
                extent,
            } => {
                write!(
                    f,
                    "a gather index of `{name}` is {index}, but axis {axis} has {extent} elements (below 0 is missing)"
                )
            }
            Missing { name } => {
                write!(
                    f,
                    "a gather index of `{name}` is missing (below 0), and the copy says nothing about that"
                )
            }
            Uninitialised { name, element } => {
                write!(f, "reads `{name}`{} before it has a value", At(element))
            }
            Race {
                name,
                element,
                wrote_now,
                other,
                other_wrote,
            } => {
                let now = if *wrote_now { "writes" } else { "reads" };
                let then = if *other_wrote { "wrote" } else { "read" };
                write!(
                    f,
                    "{now} `{name}`{}, which {other} {then}, and nothing orders the two",
                    At(element)
                )
            }
            MapRace { name, element } => {
                write!(
                    f,
                    "two iterations of one `map` touch `{name}`{}, and at least one writes it",
                    At(element)
                )
            }
            ScatterCollision {
                name,
                element,
                other,
            } => {
                write!(
                    f,
                    "`scatter` stores to `{name}`{} twice ({other} was first)",
                    At(element)
                )
            }
            Assert(m) => write!(f, "assertion failed: {m}"),
            Assume => write!(f, "an `assume` does not hold"),
            DivisionByZero => write!(f, "a divisor is 0"),
            ShiftPastWidth => write!(f, "a shift is negative or not less than the width"),
            IndexOverflow => write!(f, "an index leaves the range of 64 bits"),
            Deadlock(waiting) => {
                write!(f, "deadlock: nobody can go on")?;
                waiting.iter().try_for_each(|w| write!(f, "\n  {w}"))
            }
        }
    }
}

/// `[1, 2]`, nothing for a scalar.
struct At<'a>(&'a [i64]);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

impl fmt::Display for InterpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            write!(f, "{}", self.kind)
        } else {
            write!(f, "{} ({})", self.kind, self.place)
        }
    }
}

impl std::error::Error for InterpError {}
