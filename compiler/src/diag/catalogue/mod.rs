//! The problem catalogue: one function per problem, which takes facts and owns all wording.

pub mod bounds;
pub mod channels;
pub mod contracts;
pub mod init;
pub mod sema;
pub mod syntax;
pub mod testing;
