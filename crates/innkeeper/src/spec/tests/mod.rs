//! Tests of the spec as a whole: messages, round trips, the schema beside the reader, edits, and any text at all.

mod edits;
mod messages;
mod properties;
mod schema;
