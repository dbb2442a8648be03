//! innkeeper-image
