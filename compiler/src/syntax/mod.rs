//! Text to tree and back.
//!
//! `lex` finds comments, brackets and items; `tl.pest` is the grammar; `parse` builds the tree and reports what is wrong; `format`
//! prints it.

pub mod ast;
pub mod format;
mod lex;
mod parse;

pub use format::format;
pub use parse::parse;

/// The generated parser; its rules are the grammar's and stay inside this module.
mod grammar {
    #[derive(pest_derive::Parser)]
    #[grammar = "syntax/tl.pest"]
    pub struct Grammar;
}
