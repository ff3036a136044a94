//! Compiled CPU code against values known from elsewhere: what each op must give, and the interpreter.
#![cfg(feature = "llvm")]

mod dot;
mod harness;
mod pointwise;
