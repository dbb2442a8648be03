//! Feeds what libFuzzer makes up to the target of this name; `innkeeper-fuzz` says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| innkeeper_fuzz::run("disk_content", data));
