//! innkeeper-vz
