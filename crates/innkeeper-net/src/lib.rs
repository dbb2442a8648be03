//! innkeeper-net
