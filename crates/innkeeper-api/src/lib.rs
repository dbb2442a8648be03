//! innkeeper-api
