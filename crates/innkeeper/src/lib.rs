//! innkeeper
