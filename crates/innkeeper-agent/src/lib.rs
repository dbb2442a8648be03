//! innkeeper-agent
