//! innkeeper
pub mod guest;
